from __future__ import annotations

import subprocess
import sys

import pytest
from pydantic import ValidationError

from marl.runner.schema import ExperimentConfig, format_duration, parse_duration, valid_name

SMALL = {
    "name": "small",
    "env": {"id": "probe_value_v0", "agents": 2},
    "agents": {"all": {"algorithm": "ippo", "gamma": 0.9}},
    "stop": {"return": 1.0},
}


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("10min", 600), ("2h", 7200), ("1h 30min", 5400), ("1h30m", 5400), ("1.5h", 5400), ("2d", 172800)],
)
def test_duration_is_read_in_seconds(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "2", "h", "2 parsecs", "-2h", "2h x", "1.5.2h"])
def test_text_that_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected a duration"):
        parse_duration(text)


@pytest.mark.parametrize("seconds", [1.0, 0.25, 90.0, 600.0, 5400.0, 7200.0, 86400.0, 1e6])
def test_written_duration_reads_back(seconds: float) -> None:
    assert parse_duration(format_duration(seconds)) == seconds


@pytest.mark.parametrize("name", ["a", "Highway-ippo_2.1", "x" * 64, "..."])
def test_name_that_is_one_folder_is_allowed(name: str) -> None:
    assert valid_name(name) == name


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\\b", "a b", "a\n", "x" * 65, "ä", "latest"])
def test_name_that_could_leave_the_runs_folder_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="expected 1 to 64"):
        valid_name(name)


def test_defaults_fill_in_everything_that_is_not_required() -> None:
    config = ExperimentConfig.model_validate(SMALL)
    assert config.seed_list == (0,)
    assert config.dataflow.kind == "fused"
    assert config.dataflow.num_envs == 64
    assert config.evaluate.episodes == 64
    assert config.checkpoint.keep == 3
    assert config.stop.return_ == 1.0
    assert config.stop.env_steps is None


def test_keys_that_a_section_does_not_know_are_options_of_its_world_or_algorithm() -> None:
    config = ExperimentConfig.model_validate(SMALL)
    assert config.env.options == {"agents": 2}
    assert config.agents["all"].options == {"gamma": 0.9}


def test_seeds_keep_their_order() -> None:
    assert ExperimentConfig.model_validate({**SMALL, "seeds": [5, 1]}).seed_list == (5, 1)


def test_config_cannot_be_changed() -> None:
    config = ExperimentConfig.model_validate(SMALL)
    with pytest.raises(ValidationError, match="frozen"):
        config.name = "other"  # type: ignore[misc]


def test_reading_an_experiment_imports_neither_jax_nor_ray() -> None:
    code = (
        "import sys, marl.cli, marl.runner.load; marl.runner.load.load_experiment('quickstart'); "
        "assert not {'jax', 'ray', 'torch', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
