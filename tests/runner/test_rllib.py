"""RLlib's own algorithms from the same YAML: what is refused, and a run from training to its report."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import yaml

from marl.agents.rllib.config import RllibIMPALAConfig, RllibPPOConfig
from marl.cli import main
from marl.core.errors import ConfigError, RunError
from marl.io import checkpoint as checkpoints
from marl.runner.build import resolved
from marl.runner.load import config_from, load_experiment
from marl.runner.plan import make_plan
from marl.runner.rllib import build_rllib
from marl.runner.schema import RllibConfig

WORLDS = Path(__file__).parents[1] / "interop" / "tiny_worlds.py"
PPO = {"algorithm": "rllib/PPO"}
SMALL = {"train_batch_size": 200, "epochs": 2, "minibatch_size": 100, "hidden_sizes": [8], "learning_rate": 1e-3}


def config(**changes: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "name": "baseline",
        "env": {"id": f"pettingzoo:{WORLDS}:Meeting"},
        "agents": {"all": PPO},
        "stop": {"env_steps": 400},
        "compilation_cache": False,
    }
    return {**base, **changes}


@pytest.fixture
def with_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if torch were installed: nothing is trained."""
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *a: find("json") if n == "torch" else find(n, *a))


def test_its_algorithms_choose_its_dataflow(with_torch: None) -> None:
    plan = make_plan(config_from(config()))
    assert plan.learners == ("all",)
    assert resolved(plan).dataflow == RllibConfig()
    frozen = {"agents": {"boss": {**PPO, "checkpoint": "somewhere"}, "scout": {"algorithm": "ppo"}}}
    assert config_from(config(**frozen)).dataflow.kind == "local"
    assert config_from(config(**frozen, env={"id": "probe_roles_v0"})).dataflow.kind == "fused"


def test_a_role_has_a_network_or_each_of_its_agents(with_torch: None) -> None:
    agents = {"scout": {**PPO, "sharing": "none"}, "boss": {**PPO, "sharing": "none"}}
    plan = make_plan(config_from(config(agents=agents, seeds=[0, 1], dataflow={"num_env_runners": 3})))
    run = build_rllib(resolved(plan), plan)
    modules = ["scout_0", "scout_1", "boss_0"]
    assert list(run.trainings[0].modules.items()) == [(name, name) for name in modules]
    assert run.policies == {"scout": {"scout": modules[:2]}, "boss": {"boss": modules[2:]}}
    assert [training.seed for training in run.trainings] == [0, 1]
    assert run.num_envs == 3
    shared = make_plan(config_from(config()))
    assert build_rllib(resolved(shared), shared).policies == {"all": {"scout": ["scout"], "boss": ["boss"]}}


TWO = {"scout": PPO, "boss": PPO}
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "another dataflow": (config(dataflow={"kind": "local"}), "dataflow.kind.*expected rllib"),
    "another algorithm": (
        config(agents={"all": {"algorithm": "ppo"}}, dataflow={"kind": "rllib"}),
        r"agents\.all\.algorithm.*all roles or none",
    ),
    "a scripted partner": (config(agents=TWO | {"boss": {"algorithm": "random"}}), r"agents\.boss.*all roles"),
    "two algorithms": (config(agents=TWO | {"boss": {"algorithm": "rllib/IMPALA"}}), "expected rllib/PPO"),
    "unlike options": (
        config(agents=TWO | {"boss": {**PPO, "gamma": 0.5}}),
        r"agents\.boss\.gamma: 0.5 differs from 0.99 of 'scout'",
    ),
    "an unknown option": (config(agents={"all": {**PPO, "epoch": 3}}), "epoch.*did you mean 'epochs'"),
    "a large minibatch": (
        config(agents={"all": {**PPO, "train_batch_size": 64}}),
        "minibatch_size 128 is more than train_batch_size 64",
    ),
    "an accelerator": (config(dataflow={"devices": {"learner": "gpu"}}), r"devices\.learner.*expected auto or cpu"),
    "nobody to act": (
        config(agents={"all": {"algorithm": "rllib/IMPALA"}}, dataflow={"num_env_runners": 0}),
        "num_env_runners.*at least 1",
    ),
    "a search beside it": (config(agents=TWO | {"boss": {"algorithm": "random_search"}}), r"agents\.boss.*all roles"),
    "masks": (config(env={"id": f"gymnasium:{WORLDS}:Masked"}), "know no action masks"),
    "masks of a world in JAX": (
        config(env={"id": "probe_roles_v0"}),
        "know no action masks, which role 'follower' has",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_rllib_cannot_train_is_one_error(with_torch: None, name: str) -> None:
    data, message = BAD[name]
    with pytest.raises(ConfigError, match=message):
        resolved(make_plan(config_from(data)))


def test_a_loss_that_is_not_finite_ends_the_run(with_torch: None) -> None:
    plan = make_plan(config_from(config()))
    run = build_rllib(resolved(plan), plan)
    run._note(0, {"boss": {"loss/total": 1.0}, "scout": {"loss/total": 3.0}})
    assert run._metrics == [{"all": {"loss/total": 2.0}}]
    with pytest.raises(RunError, match="'all' has diverged: RLlib's loss/total is nan"):
        run._note(0, {"boss": {"loss/total": 1.0}, "scout": {"loss/total": float("nan")}})


def test_without_torch_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *a: None if n == "torch" else find(n, *a))
    plan = make_plan(config_from(config()))
    with pytest.raises(ConfigError, match=r"agents\.all\.algorithm: rllib/PPO learns with torch.*\[rllib-torch\]"):
        resolved(plan)


# ---- the guide -------------------------------------------------------------------------------------------------------


def guide(repository: Path) -> str:
    return (repository / "docs/guides/rllib.md").read_text()


def test_the_example_of_the_guide_is_an_experiment(repository: Path, tmp_path: Path) -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", guide(repository), re.DOTALL)
    (tmp_path / "example.yaml").write_text(text)
    config = load_experiment(str(tmp_path / "example.yaml")).config
    RllibPPOConfig(**config.agents["all"].options)
    assert config.dataflow == RllibConfig(num_env_runners=2, envs_per_runner=4)


def test_every_option_and_setting_stands_in_the_guide_with_its_default(repository: Path) -> None:
    lines = [line for line in guide(repository).splitlines() if line.startswith("| `")]
    cells = [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in lines]
    options = {row[0]: row[1:] for row in cells if len(row) == 4}
    for place, model in enumerate((RllibPPOConfig, RllibIMPALAConfig)):
        said = {name: yaml.safe_load(values[place]) for name, values in options.items() if values[place]}
        assert said == model().model_dump(mode="json")
    settings = {row[0]: row[1] for row in cells if len(row) == 3}
    assert settings.keys() == set(RllibConfig.model_fields) - {"kind"}
    assert [yaml.safe_load(settings[n]) for n in ("num_env_runners", "envs_per_runner", "updates_per_dispatch")] == [
        2,
        1,
        1,
    ]
    assert yaml.safe_load(settings["world_faults"]) == RllibConfig().world_faults.model_dump()


# ---- training --------------------------------------------------------------------------------------------------------


def write(folder: Path, **changes: Any) -> str:
    path = folder / "baseline.yaml"
    path.write_text(json.dumps(config(**changes)))
    return str(path)


def rows(run: Path, kind: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in found if row["kind"] == kind]


def only_run(folder: Path) -> Path:
    (run,) = (folder / "runs" / "baseline").iterdir()
    return run


@pytest.fixture
def torch_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a run may lie; skips without torch."""
    pytest.importorskip("torch", reason="RLlib's learners need torch: pip install -e '.[rllib-torch]'")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
@pytest.mark.ray
def test_ppo_trains_resumes_and_is_used_without_rllib(torch_folder: Path) -> None:
    file = write(
        torch_folder,
        agents={"all": {**PPO, **SMALL}},
        seeds=[0, 1],
        dataflow={"num_env_runners": 0, "envs_per_runner": 2},
        evaluate={"episodes": 3},
    )
    assert main(["train", file]) == 0
    run = only_run(torch_folder)
    assert main(["resume", str(run), "stop.env_steps=600"]) == 0
    trained = rows(run, "train")
    of_seed = [[row for row in trained if row["seed"] == seed] for seed in (0, 1)]
    for own in of_seed:
        assert own[-1]["env_steps"] >= 600
        assert [row["updates"] for row in own] == [1, 2, 3]
        assert own[-1]["flow/agent_steps"] == 3 * own[-1]["env_steps"]  # nobody leaves before the end
        assert own[-1]["flow/policy_lag"] == 0.0
        assert all(
            f"{tag}/all/{rest}" in own[-1] for tag, rest in (("loss", "policy"), ("value", "explained_variance"))
        )
        assert own[-1]["episode/return/boss"] == 15.0
        assert own[-1]["episode/return/scout"] == 7.5  # the mean over two of them
    assert of_seed[0][0]["loss/all/total"] != of_seed[1][0]["loss/all/total"]
    assert [row["event"] for row in rows(run, "event")] == ["episodes restarted"] * 2
    assert main(["evaluate", str(run), "--episodes", "3"]) == 0
    assert main(["report", str(run)]) == 0
    assert main(["resume", str(run), "stop.env_steps=600"]) == 0  # nothing is left to do
    assert len(rows(run, "train")) == len(trained)
    options = {**PPO, "hidden_sizes": [8], "checkpoint": str(run)}
    frozen = config(name="frozen", agents={"scout": options, "boss": options})
    (torch_folder / "frozen.yaml").write_text(json.dumps(frozen))
    assert main(["evaluate", "frozen.yaml", "--episodes", "2"]) == 0


@pytest.mark.slow
@pytest.mark.ray
def test_a_checkpoint_holds_the_whole_learner_and_the_published_network_is_its_own(torch_folder: Path) -> None:
    plan = make_plan(
        config_from(config(agents={"all": {**PPO, **SMALL, "sharing": "none"}}, dataflow={"num_env_runners": 0}))
    )
    settled = resolved(plan)
    with contextlib.closing(build_rllib(settled, plan)) as run, contextlib.closing(build_rllib(settled, plan)) as again:
        run.dispatch(run.init(), [0])
        stored = run.snapshot(run)
        path = checkpoints.save(torch_folder, 200, stored, {})
        again.load(path, again.init())
        jax.tree.map(np.testing.assert_array_equal, again.snapshot(again), stored)
        assert [words[1] for words in again.take_events()] == ["episodes restarted"]
        _, result = again.dispatch(again, [200])
        assert result.updates["all"].tolist() == [1]
        assert again.trainers[0].updates() == 2
        kept = stored["learners"][0]
        assert all(moments["step"] > 0 for own in kept["optimizers"].values() for moments in own.values())

        policy, params = plan.policies["all"], run.published(run, 0)["all"]
        assert params["scout"][0]["weight"].shape[0] == 2  # a network each
        spec = next(spec for spec in plan.env.roles if spec.name == "scout")
        obs = np.random.default_rng(0).normal(size=(2, 2)).astype(np.float32)
        ours = policy.distribution(spec, params["scout"], obs).logits  # type: ignore[attr-defined]
        for index in range(2):
            import torch

            module = run.trainers[0]._learner().module[f"scout_{index}"]
            with torch.no_grad():
                theirs = module.forward_inference({"obs": torch.from_numpy(obs[index : index + 1])})
            np.testing.assert_allclose(ours[index], theirs["action_dist_inputs"][0].numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.ray
def test_impala_trains_in_processes_of_its_own(torch_folder: Path) -> None:
    file = write(
        torch_folder,
        env={"id": "gymnasium:CartPole-v1"},
        agents={"all": {"algorithm": "rllib/IMPALA", "train_batch_size": 100, "hidden_sizes": [8]}},
        dataflow={"num_env_runners": 1, "envs_per_runner": 2},
        evaluate={"episodes": 2, "video": False},
    )
    assert main(["train", file]) == 0
    run = only_run(torch_folder)
    trained = rows(run, "train")
    assert trained[-1]["env_steps"] >= 400
    assert 1 <= trained[-1]["updates"] <= trained[-1]["env_steps"] // 100
    assert trained[-1]["flow/episodes"] == sum(row.get("episode/count", 0) for row in trained)
    assert main(["resume", str(run), "stop.env_steps=600"]) == 0
    assert rows(run, "train")[-1]["updates"] > trained[-1]["updates"]
    first = rows(run, "train")[len(trained)]
    assert first["flow/policy_lag"] < trained[-1]["updates"]  # runners act with what was restored


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.learn
def test_ppo_learns_to_balance_and_its_policy_plays_as_well(torch_folder: Path) -> None:
    options = {"learning_rate": 1e-3, "train_batch_size": 2000, "epochs": 10, "minibatch_size": 250, "value_clip": None}
    file = write(
        torch_folder,
        env={"id": "gymnasium:CartPole-v1"},
        agents={"all": {**PPO, **options, "hidden_sizes": [32, 32]}},
        dataflow={"num_env_runners": 0, "envs_per_runner": 8},
        stop={"env_steps": 40_000},
        evaluate={"episodes": 20, "video": False},
    )
    assert main(["train", file]) == 0
    run = only_run(torch_folder)
    played = rows(run, "eval")[-1]["eval/return/agent"]  # by the network in JAX
    trained = rows(run, "train")[-1]["episode/return/agent"]  # by RLlib's own
    assert trained > 120
    assert played > 120
