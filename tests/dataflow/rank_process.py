"""A rank of a learner group in a process of its own, driven by JSON lines and files of arrays; both of its ends.

`python -m tests.dataflow.rank_process ADDRESS RANKS RANK FOLDER JSON` answers a line for every line.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from marl.core.errors import MarlError, RunError
from marl.dataflow.learner_rank import RankShell, decode, encode

from .tiny_mesh import blueprint

ROOT = Path(__file__).parents[2]


def wrap(value: Any, file: Path) -> dict[str, Any]:
    """A value as JSON, its arrays in a file."""
    ((kind, data),) = encode(value).items()
    if kind == "json":
        return {kind: data}
    data.tofile(file)
    return {kind: str(file)}


def unwrap(wrapped: dict[str, Any]) -> Any:
    """The inverse of `wrap`."""
    ((kind, data),) = wrapped.items()
    return decode({kind: data if kind == "json" else np.fromfile(data, np.uint8)})


class Reply:
    """What a process will have answered to its call number `number`."""

    def __init__(self, rank: ProcessRank, number: int) -> None:
        self.rank, self.number = rank, number

    def ready(self) -> bool:
        self.rank.read()
        return self.number < len(self.rank.replies) or self.rank.gone

    def result(self) -> Any:
        if self.number >= len(self.rank.replies):
            raise RunError(f"rank {self.rank.index} is gone")
        reply = self.rank.replies[self.number]
        if "error" in reply:
            raise RunError(reply["error"])
        return unwrap(reply)


class ProcessRank:
    """The `Rank` of a process that it starts."""

    def __init__(self, address: str, ranks: int, rank: int, folder: Path, make: dict[str, Any]) -> None:
        self.index, self.folder, self.calls, self.gone = rank, folder, 0, False
        self.replies: list[dict[str, Any]] = []
        self._rest = b""
        command = [
            sys.executable,
            "-m",
            "tests.dataflow.rank_process",
            address,
            str(ranks),
            str(rank),
            str(folder),
            json.dumps(make),
        ]
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
        with open(folder / f"rank{rank}.log", "ab") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, cwd=ROOT, env=environment
            )

    def call(self, method: str, *arguments: Any) -> Reply:
        assert self.process.stdin is not None
        name = f"call{self.index}_{self.process.pid}_{self.calls}"
        wrapped = [wrap(value, self.folder / f"{name}_{n}") for n, value in enumerate(arguments)]
        try:
            self.process.stdin.write(json.dumps([method, wrapped]).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            self.gone = True
        self.calls += 1
        return Reply(self, self.calls - 1)

    def read(self) -> None:
        """Take the answers that have come."""
        out = self.process.stdout
        assert out is not None
        while not self.gone and select.select([out], [], [], 0)[0]:
            data = os.read(out.fileno(), 1 << 16)
            self.gone = not data
            *lines, self._rest = (self._rest + data).split(b"\n")
            self.replies += [json.loads(line) for line in lines]

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()
        self.gone = True


def serve(address: str, ranks: str, rank: str, folder: str, made: str) -> None:
    """Join, and do what the lines say until there are no more, or something fails."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # the collectives' library writes there
    recipe = blueprint(**json.loads(made))
    learner = RankShell(recipe, recipe.identity(), address, int(ranks), int(rank)).learners["all"]
    for number, line in enumerate(sys.stdin):
        method, arguments = json.loads(line)
        try:
            answer = wrap(
                getattr(learner, method)(*[unwrap(value) for value in arguments]),
                Path(folder) / f"answer{rank}_{os.getpid()}_{number}",
            )
        except MarlError as error:
            print(json.dumps({"error": str(error)}), file=out, flush=True)
            os._exit(1)
        print(json.dumps(answer), file=out, flush=True)
    os._exit(0)


if __name__ == "__main__":
    serve(*sys.argv[1:])
