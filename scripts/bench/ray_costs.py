"""What the parts of a run on Ray cost beside training: start-up, memory, the age of weights at first use, and what a
lost part takes. One answer a case, each a record with `text`."""

from __future__ import annotations

import os
import signal
import sys
import time

BEGAN = time.perf_counter()  # before JAX and Ray are imported

import statistics  # noqa: E402
import tempfile  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

sys.path.insert(0, str(Path(__file__).resolve().parent / "peers"))

import ray_processes  # noqa: E402
import serving  # noqa: E402
from ray_cases import ours  # noqa: E402
from ray_ours import OurRun, Shares  # noqa: E402

from marl.dataflow.ray_crew import now  # noqa: E402

PARTS = ("actor", "server", "learner")
EVENTS = {"actor": "actor restarted", "server": "policy server restarted", "learner": "learner restarted"}
BACK_LIMIT_S = 120.0


class Latency:
    """Notes when a version is published, first acted with, and first seen in a rollout. Wraps what the driver calls."""

    def __init__(self, run: Any) -> None:
        self.published: dict[int, float] = {run.version: now()}
        self.sent: dict[int, float] = {}
        self.used: dict[int, float] = {}
        self.rollouts: list[float] = []
        heard, take = run.learner.heard, run.actors.take

        def note_published(reference: Any) -> Any:
            offer = heard(reference)
            self.published.setdefault(run.version, now())
            return offer

        def note_used(hand: Any, reference: Any) -> Any:
            taken = take(hand, reference)
            if taken is not None:
                call, _ = taken
                self.sent.setdefault(call.version, call.sent)
                self.used.setdefault(call.version, now())
                self.rollouts.append(now() - call.sent)
            return taken

        run.learner.heard, run.actors.take = note_published, note_used

    def result(self) -> dict[str, Any]:
        versions = [v for v in self.used if v in self.published]
        sent = sorted(1000 * (self.sent[v] - self.published[v]) for v in versions)
        used = sorted(1000 * (self.used[v] - self.published[v]) for v in versions)
        if not used:
            return {"text": "no version was used"}
        call = 1000 * statistics.median(self.rollouts)
        text = (
            f"{quantiles(sent)} ms to the first call with the new weights, {quantiles(used)} ms to the end of a "
            f"first rollout; a call takes {call:,.0f} ms from when it is sent ({len(used)} versions)"
        )
        return {"text": text, "sent_ms": sent, "used_ms": used, "call_ms": call}


def quantiles(ordered: list[float]) -> str:
    """`median (95th percentile)`."""
    return f"{statistics.median(ordered):,.1f} (95 %: {ordered[int(0.95 * (len(ordered) - 1))]:,.1f})"


def start_up(run: OurRun, first: float) -> dict[str, Any]:
    began = run.began
    steps = {
        "import and plan": began["imported"] - BEGAN,
        "Ray": began["session"] - began["imported"],
        "parts": began["parts"] - began["session"],
        "first updates": first - began["parts"],
    }
    words = ", ".join(f"{name} {seconds:.1f}" for name, seconds in steps.items())
    return {"text": f"{first - BEGAN:.1f} s to the first metrics ({words})", "steps_s": steps}


def memory(run: OurRun) -> dict[str, Any]:
    found: dict[str, list[tuple[float, float]]] = {}
    for kind, pids in ray_processes.of_run(run.dataflow).items():
        found[kind] = [ray_processes.memory_mib(pid) for pid in pids]
    words = []
    for kind, sizes in found.items():
        if sizes:
            each = f"{len(sizes)} × " if len(sizes) > 1 else ""
            total = f", {sum(p for _, p in sizes):,.0f} in all" if len(sizes) > 1 else ""
            words.append(f"{kind} {each}{statistics.median(p for _, p in sizes):,.0f}{total}")
    return {"text": f"MiB without what is shared: {'; '.join(words)}", "rss_pss_mib": found}


def latency(run: OurRun, seconds: float) -> dict[str, Any]:
    watch = Latency(run.dataflow.run)
    began = time.perf_counter()
    while time.perf_counter() - began < seconds:
        run.train()
    del run.dataflow.run.learner.heard, run.dataflow.run.actors.take
    return watch.result()


def recovery(run: OurRun, part: str) -> dict[str, Any]:
    """Kill a part while it works, and train on, an update at a time."""
    inner = run.dataflow.run
    run.train()
    inner.take_events()
    if part == "learner":
        inner.learner.keep()
    usual = statistics.median(one_update(inner) for _ in range(10))
    os.kill(ray_processes.of_run(run.dataflow)[part][0], signal.SIGKILL)
    killed, pauses, back = time.perf_counter(), [], ""
    while not back:
        if time.perf_counter() - killed > BACK_LIMIT_S:
            raise TimeoutError(f"the {part} was not back within {BACK_LIMIT_S:.0f} s")
        pauses.append(one_update(inner))
        back = next((words for name, words in inner.take_events() if name == EVENTS[part]), "")
    took = time.perf_counter() - killed
    text = f"back after {took:.1f} s; the longest wait for an update was {max(pauses):.1f} s (usually {usual:.3f})"
    return {"text": text, "back_s": took, "pause_s": max(pauses), "usual_s": usual, "event": back}


def one_update(inner: Any) -> float:
    began = time.perf_counter()
    inner.run(1)
    return time.perf_counter() - began


def main() -> None:
    own = serving.setting()
    setting = ours("cartpole", inference="served").setting
    with tempfile.TemporaryDirectory() as name:
        run = OurRun(setting, Path(name), [Shares()])
        try:
            run.train()
            first = time.perf_counter()
            for _ in range(3):
                run.train()
            cases: dict[str, Any] = {
                "startup": lambda: start_up(run, first),
                "memory": lambda: memory(run),
                "latency": lambda: latency(run, own["seconds"]),
                **{f"recovery: {part}": lambda part=part: recovery(run, part) for part in PARTS},
            }
            cases = {case: make for case, make in cases.items() if case.partition(":")[0] in own["what"]}
            serving.say({"cases": len(cases), **serving.versions("jax", "ray")})
            for (case, make), _ in zip(cases.items(), serving.requests(), strict=False):
                began = time.perf_counter()
                record = make()
                took = time.perf_counter() - began
                serving.say({"case": case, "env_steps": 0, "seconds": max(took, 1e-3), **record})
        finally:
            run.close()


if __name__ == "__main__":
    main()
