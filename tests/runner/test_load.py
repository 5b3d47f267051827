from __future__ import annotations

import math
from pathlib import Path

import pytest

from marl.core.errors import ConfigError
from marl.runner.load import config_from, find_experiment, load_experiment, packaged_experiments, resolved_yaml
from marl.runner.yaml_tree import parse_scalar, parse_yaml

TEXT = """\
name: small
seed: 3
env: {id: probe_value_v0}
agents:
  all:
    algorithm: ippo
    learning_rate: 3e-4
stop: {env_steps: 2_000_000, wall_time: 90min}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(TEXT)
    return path


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e-4", 3e-4),
        ("5.0e-4", 5e-4),
        (".5", 0.5),
        ("5.", 5.0),
        ("-1", -1),
        ("+1", 1),
        ("010", 10),
        ("2_000_000", 2_000_000),
        ("2e6", 2_000_000),
        ("1.5e6", 1_500_000),
        ("1.0", 1.0),
        ("true", True),
        ("null", None),
        ("~", None),
        ("", None),
        # text, though YAML 1.1 reads something else
        ("on", "on"),
        ("no", "no"),
        ("1:30", "1:30"),
        ("2026-01-02", "2026-01-02"),
        ("0x10", "0x10"),
        ("1__0", "1__0"),
        ("2h", "2h"),
        ("1e", "1e"),
        (".", "."),
        ("-", "-"),
    ],
)
def test_unquoted_word_is_what_it_looks_like(text: str, value: object) -> None:
    found = parse_scalar(text)
    assert found == value
    assert type(found) is type(value)


def test_special_numbers_are_read() -> None:
    assert parse_scalar("-.inf") == -math.inf
    assert math.isnan(parse_scalar(".nan"))  # type: ignore[arg-type]
    assert parse_scalar("1e999") == math.inf


def test_quoted_word_is_text() -> None:
    tree = parse_yaml("a: '12'\nb: \"true\"\nc: !!str 5\nd: ! 6\n", "x")
    assert tree is not None
    assert tree.plain() == {"a": "12", "b": "true", "c": "5", "d": "6"}


def test_alias_stands_for_its_anchor_and_has_a_line_of_its_own() -> None:
    tree = parse_yaml("a: &x [1, 2]\nb: *x\n", "file")
    assert tree is not None
    assert tree.plain() == {"a": [1, 2], "b": [1, 2]}
    assert tree.nearest(("b",)).place == "file:2"


def test_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    path = tmp_path / "bom.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + TEXT.encode())
    assert load_experiment(path).config.name == "small"


def test_file_and_overrides_make_a_config(file: Path) -> None:
    loaded = load_experiment(
        file, ["agents.all.learning_rate=1e-3", "evaluate.every=1e5", "stop={env_steps: 10}", "env.agents=2"]
    )
    assert loaded.config.agents["all"].options == {"learning_rate": 1e-3}
    assert loaded.config.evaluate.every == 100_000
    assert loaded.config.stop.env_steps == 10
    assert loaded.config.stop.wall_time is None
    assert loaded.config.env.options == {"agents": 2}


def test_nothing_after_a_key_is_the_same_as_leaving_it_out(file: Path) -> None:
    config = load_experiment(file, ["stop.wall_time=", "evaluate.every=null"]).config
    assert config.stop.wall_time is None
    assert config.evaluate.every is None


def test_override_may_hold_equals_signs_and_reach_into_lists(file: Path) -> None:
    config = load_experiment(file, ["seeds=[1, 2]", "seeds.1=7", "runs_dir=a=b"]).config
    assert config.seed_list == (1, 7)
    assert config.runs_dir == "a=b"


def test_seeds_on_the_command_line_replace_the_seed_of_the_file(file: Path) -> None:
    assert load_experiment(file, ["seeds=[1, 2]"]).config.seed_list == (1, 2)


def test_last_of_two_overrides_of_one_key_wins(file: Path) -> None:
    assert load_experiment(file, ["seed=1", "seed=2"]).config.seed_list == (2,)


def test_only_some_sections_may_change_when_a_run_goes_on(file: Path) -> None:
    only = ("stop", "evaluate", "checkpoint")
    assert load_experiment(file, ["stop.env_steps=5"], only=only).config.stop.env_steps == 5
    with pytest.raises(ConfigError, match=r"command line: seed: cannot change here; expected a key of stop, evaluate"):
        load_experiment(file, ["seed=5"], only=only)


def test_resolved_config_is_runnable_and_the_same(file: Path, tmp_path: Path) -> None:
    config = load_experiment(file, ["agents.all.value_clip=null", "name='1e5'"]).config
    again = tmp_path / "resolved.yaml"
    again.write_text(resolved_yaml(config))
    assert load_experiment(again).config == config
    assert load_experiment(again).config.agents["all"].options["value_clip"] is None
    assert resolved_yaml(load_experiment(again).config) == resolved_yaml(config)


def test_several_mistakes_are_named_in_one_message(file: Path) -> None:
    file.write_text(TEXT.replace("seed: 3", "seed: x").replace("2_000_000", "-1"))
    with pytest.raises(ConfigError) as caught:
        load_experiment(file)
    assert "small.yaml:2: seed: 'x'" in str(caught.value)
    assert "(also wrong: stop.env_steps)" in str(caught.value)


def test_config_made_in_python_is_checked_as_a_file_is() -> None:
    with pytest.raises(ConfigError, match=r"^stop: no stop rule"):
        config_from({"name": "x", "env": {"id": "cartpole_v0"}, "agents": {"all": {"algorithm": "ppo"}}, "stop": {}})


def test_packaged_experiments_are_found_by_name() -> None:
    names = packaged_experiments()
    assert {"quickstart", "highway/ippo_mild", "highway/mappo_chaotic"} <= names.keys()
    assert find_experiment("quickstart") == names["quickstart"]


@pytest.mark.parametrize("name", packaged_experiments())
def test_packaged_experiment_is_valid(name: str) -> None:
    assert load_experiment(name).config.seed_list


def test_file_wins_over_a_packaged_name(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(file.parent)
    file.rename("quickstart")
    assert load_experiment("quickstart").config.name == "small"
