"""scripts/bench/highway prints one JSON object with the ratio of both sides."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.parity
def test_both_sides_run_and_the_ratio_is_that_of_their_rates(repository: Path) -> None:
    command = [sys.executable, "scripts/bench/highway", "--json", "--windows", "1", "--seconds", "1"]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["ratio"] == pytest.approx(result["ours"] / result["highway_env"], rel=0.02)
    assert result["ratio_min"] <= result["ratio"] <= result["ratio_max"]
    assert result["windows"] == 1


def test_wrong_arguments_are_refused_before_anything_starts(repository: Path) -> None:
    command = [sys.executable, "scripts/bench/highway", "--windows", "0"]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "--windows" in done.stderr
