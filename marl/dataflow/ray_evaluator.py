"""What runs in a Ray actor that evaluates individuals: a shell around a plain `Evaluator`.

Importing this imports no JAX, so that the environment of the actor's process can be set first. Nothing but JSON and
arrays comes in and goes out.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Mapping
from typing import Any

Sent = tuple[int, int, int, Any, Any]  # a task: index, count, episodes, offspring, keys


class EvaluatorShell:
    """Builds its evaluator by calling `function` (`package.module:name`) with `arguments` (JSON).

    path: where modules are looked for.  environment: set before anything that reads it is imported.
    """

    def __init__(self, function: str, arguments: str, path: list[str], environment: Mapping[str, str]) -> None:
        os.environ.update(environment)
        sys.path += [folder for folder in path if folder not in sys.path]
        from marl.core.errors import MarlError

        self._error: dict[str, Any] = {}
        self._version: int | None = None
        self._shared: Any = None
        module, _, name = function.partition(":")
        try:
            self._evaluator = getattr(importlib.import_module(module), name)(**json.loads(arguments))
        except MarlError as error:
            self._error = {"error": str(error), "user": error.exit_code == 2}

    def hello(self) -> dict[str, Any]:
        """The number of the process, or what went wrong in it."""
        return self._error or {"pid": os.getpid()}

    def environment(self, names: list[str]) -> dict[str, str | None]:
        """Some of the variables that this process sees."""
        return {name: os.environ.get(name) for name in names}

    def evaluate(self, version: int, shared: Any, sent: Sent) -> dict[str, Any]:
        """The results of a task as plain arrays. version: of what is shared, which is brought to the device once."""
        import jax

        from marl.core.errors import MarlError
        from marl.dataflow.population_evaluators import evaluate
        from marl.dataflow.population_tasks import Task

        if version != self._version:
            self._version, self._shared = version, jax.device_put(shared)
        try:
            result = evaluate(self._evaluator, self._shared, Task(*sent))
        except MarlError as error:
            return {"error": str(error), "user": False}
        return {
            "returns": result.returns,
            "length": result.length,
            "agent_steps": result.agent_steps,
            "info": result.info,
            "faults": self._evaluator.new_faults(),
        }
