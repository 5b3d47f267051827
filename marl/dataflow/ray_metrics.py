"""Numbers of a run in Ray's own metrics, and so in its dashboard: one gauge a number, tagged by the kind of part only.

Ten actors write the same gauge with the same tags; a tag by actor or by seed would make a series each, for ever, in
every store of metrics that reads them. What a single actor does is in `metrics.jsonl`.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Mapping
from typing import Any

PREFIX = "marl_"
_NOT_IN_NAMES = re.compile(r"[^a-zA-Z0-9_]+")


def metric_name(tag: str) -> str:
    """`marl_flow_queue_depth` for `flow/queue_depth`: what Prometheus takes as a name."""
    return PREFIX + _NOT_IN_NAMES.sub("_", tag).strip("_").lower()


class Gauges:
    """Gauges of one kind of part (`actor`, `server`, `learner`, `store`, `runner`). Does nothing outside Ray."""

    def __init__(self, role_kind: str) -> None:
        self.role_kind = role_kind
        self._made: dict[str, Any] = {}

    def set(self, numbers: Mapping[str, object]) -> int:
        """Show these numbers; what is no finite number is left out. Returns how many were shown, 0 outside Ray."""
        ray = sys.modules.get("ray")
        if ray is None or not ray.is_initialized():
            return 0
        shown = 0
        for tag, value in numbers.items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                continue
            self._gauge(tag).set(float(value))
            shown += 1
        return shown

    def _gauge(self, tag: str) -> Any:
        name = metric_name(tag)
        if name not in self._made:
            from ray.util.metrics import Gauge

            made = Gauge(name, description=f"{tag} of a run", tag_keys=("role_kind",))
            made.set_default_tags({"role_kind": self.role_kind})
            self._made[name] = made
        return self._made[name]
