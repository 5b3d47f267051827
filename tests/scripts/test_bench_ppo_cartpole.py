"""The comparison with rejax: its options, and that our side trains."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "bench" / "ppo_cartpole"


def test_help_says_what_is_compared() -> None:
    shown = subprocess.run([sys.executable, str(SCRIPT), "--help"], capture_output=True, text=True, check=True)
    assert "rejax" in shown.stdout
    assert "--json" in shown.stdout


def test_no_repeats_is_a_usage_error() -> None:
    refused = subprocess.run(
        [sys.executable, str(SCRIPT), "--repeats", "0"], capture_output=True, text=True, check=False
    )
    assert refused.returncode == 2
    assert "at least 1" in refused.stderr


@pytest.mark.slow
@pytest.mark.long
def test_our_side_answers_every_line_with_one_training_run() -> None:
    side = subprocess.run(
        [sys.executable, "-W", "ignore", str(ROOT / "scripts" / "bench" / "ppo_cartpole_ours.py"), "2"],
        input="\n",
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
    )
    about, run = (json.loads(line) for line in side.stdout.splitlines())
    assert about["device"]
    assert 0 < run["env_steps"] <= 2 * 128 * 8
    assert run["seconds"] > 0
