"""Our worlds as RLlib sees them, and the network that RLlib trains as ours acts with it. No cluster is started here."""

from __future__ import annotations

import importlib
import itertools
import json
import re
import warnings
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from marl.agents.networks.observations import flatten
from marl.agents.rllib.config import RllibIMPALAConfig, RllibPPOConfig
from marl.agents.rllib.policy import RllibPolicy, RllibPPO
from marl.core.errors import UserError, WorldError
from marl.core.roles import RoleSpec
from marl.core.spaces import Box, Dict, Discrete, MultiDiscrete, Space
from marl.dataflow import ray_session
from marl.interop.rllib_learner import learner_metrics, policy_layers
from marl.interop.rllib_world import flat, flat_size, open_world

HERE = Path(__file__).parent / "tiny_worlds.py"
ROLES = "marl.envs.probe.roles:Roles"
SPACES: list[Any] = [
    Box((2, 3)),
    Box((2, 2, 3), 0, 255, "uint8"),
    Discrete(4),
    MultiDiscrete((2, 3)),
    Dict.of({"b": Discrete(3), "a": Box((2,))}),
]


@pytest.fixture(scope="module")
def rllib() -> Any:
    """`marl.interop.rllib`, imported no sooner than here: it brings Ray, which reads its environment once."""
    ray_session._guard()
    with warnings.catch_warnings(action="ignore"):
        return importlib.import_module("marl.interop.rllib")


def element(space: Any, random: np.random.Generator) -> Any:
    match space:
        case Box():
            return (100 * random.random(space.shape)).astype(space.dtype)
        case Discrete():
            return np.int32(random.integers(space.n))
        case MultiDiscrete():
            return random.integers(np.asarray(space.nvec)).astype(np.int32)
    return {key: element(part, random) for key, part in space.items}


@pytest.mark.parametrize("is_flat", [False, True])
@pytest.mark.parametrize("world", [ROLES, f"pettingzoo:{HERE}:Meeting", "gymnasium:CartPole-v1"])
def test_a_world_passes_rllibs_own_check(rllib: Any, world: str, is_flat: bool) -> None:
    from ray.rllib.utils.pre_checks.env import check_multiagent_environments

    env = rllib.RllibEnv({"world": world, "flat": is_flat})
    check_multiagent_environments(env)
    obs, _ = env.reset(seed=3)
    assert all(env.get_observation_space(agent).contains(x) for agent, x in obs.items())
    env.close()


def test_an_episode_that_only_time_ends_is_truncated_and_counted(rllib: Any) -> None:
    env = rllib.RllibEnv({"world": f"pettingzoo:{HERE}:Meeting", "options": {"steps": 3}})
    obs, _ = env.reset(seed=0)
    assert list(obs) == env.possible_agents == env.agents
    for _ in range(3):
        actions = {agent: env.get_action_space(agent).sample() for agent in env.agents}
        obs, reward, terminated, truncated, _ = env.step(actions)
    assert sorted(reward.values()) == [1.0, 2.0, 3.0]
    assert not any(terminated.values())
    assert all(truncated.values())
    assert truncated["__all__"]
    assert set(obs) == set(env.possible_agents)  # the last observation is what a truncated episode's value is of
    counted = env.counter.take()
    assert {k: counted[k] for k in ("env_steps", "agent_steps", "episodes", "length")} == {
        "env_steps": 3,
        "agent_steps": 9,
        "episodes": 1,
        "length": 3,
    }
    assert sorted(v for k, v in counted.items() if k.startswith("return/")) == [4.5, 9.0]  # the mean over two scouts
    assert env.counter.take() == {}


def test_agents_end_one_by_one_and_join(rllib: Any) -> None:
    env = rllib.RllibEnv({"world": f"pettingzoo:{HERE}:Party"})
    obs, _ = env.reset(seed=0)
    seen = [set(obs)]
    ends: list[dict[str, bool]] = []
    while env.world.living:
        obs, _, terminated, truncated, _ = env.step(dict.fromkeys(env.world.living, 0))
        seen.append(set(obs))
        ends.append({a: terminated[a] for a in terminated if a != "__all__" and (terminated[a] or truncated[a])})
    zero, one, two = env.possible_agents
    assert seen == [{zero, one}, {zero, one}, {zero, one, two}, {one, two}, {two}, {two}]
    assert ends == [{}, {zero: True}, {one: False}, {}, {two: False}]
    assert terminated["__all__"] is False
    assert truncated["__all__"] is True


def test_in_a_world_of_turns_only_the_next_to_act_observes(rllib: Any) -> None:
    env = rllib.RllibEnv({"world": f"pettingzoo:{HERE}:Dice"})
    obs, infos = env.reset(seed=0)
    actors, total = [], dict.fromkeys(env.possible_agents, 0.0)
    while env.world.living:
        (actor,) = [agent for agent in obs if agent in env.world.living]
        actors.append(int(actor[-1]))
        assert infos[actor]["action_mask"][0] == 1
        obs, reward, _, truncated, infos = env.step({actor: 0})
        for agent, value in reward.items():
            total[agent] += value
    assert actors == [0, 1, 2, 0, 1, 2, 0, 1, 0, 1, 0, 1]
    assert truncated["__all__"]
    assert len(total) == 3
    counted = env.counter.take()
    assert counted["env_steps"] == 12
    assert sum(v for k, v in counted.items() if k.startswith("return/")) == pytest.approx(sum(total.values()) / 3)


def test_seeds_repeat_and_differ_between_runners(rllib: Any) -> None:
    class Context(dict[str, Any]):
        worker_index = 0

    def starts(index: int, seed: int) -> list[Any]:
        Context.worker_index = index
        env = rllib.RllibEnv(Context(world="gymnasium:CartPole-v1"))
        return [env.reset(seed=seed)[0]["agent_0"].tolist(), env.reset()[0]["agent_0"].tolist()]

    assert starts(0, 5) == starts(0, 5)
    assert starts(0, 5)[0] != starts(0, 5)[1]
    assert starts(0, 5) != starts(0, 6)


def test_unknown_worlds_keys_and_options_are_errors_in_one_sentence(rllib: Any) -> None:
    with pytest.raises(UserError, match="unknown key 'wrld'"):
        rllib.RllibEnv({"world": ROLES, "wrld": 1})
    with pytest.raises(UserError, match="no module named"):
        open_world("nowhere.worlds:World", {})
    with pytest.raises(UserError, match=r"unknown option 'stps'.*steps"):
        open_world(f"pettingzoo:{HERE}:Meeting", {"stps": 3})


@pytest.mark.parametrize("space", SPACES)
def test_a_flat_observation_is_what_the_network_reads(space: Any) -> None:
    x = element(space, np.random.default_rng(0))
    assert flat(space, x).shape == (flat_size(space),)
    np.testing.assert_array_equal(flat(space, x), np.asarray(flatten(space, jax.tree.map(np.asarray, x))))


# ---- the network -----------------------------------------------------------------------------------------------------


def policy(space: Space, seen: Any, size: int = 3, **options: Any) -> tuple[RllibPolicy, RoleSpec]:
    spec = RoleSpec("crew", size, seen, space)
    return RllibPPO(RllibPPOConfig(hidden_sizes=(5, 4), **options), (spec,)), spec


def random_layers(sizes: list[int], networks: int) -> list[dict[str, np.ndarray[Any, Any]]]:
    random = np.random.default_rng(1)
    return [
        {
            "weight": random.normal(size=(networks, out, into)).astype(np.float32),
            "bias": random.normal(size=(networks, out)).astype(np.float32),
        }
        for into, out in itertools.pairwise(sizes)
    ]


@pytest.mark.parametrize("networks", [1, 3])
def test_one_network_or_one_an_agent(networks: int) -> None:
    made, spec = policy(Discrete(2), Box((3,)), activation="relu")
    layers = random_layers([3, 5, 4, 2], networks)
    obs = np.random.default_rng(2).normal(size=(3, 3)).astype(np.float32)
    logits = np.asarray(made.distribution(spec, layers, obs).logits)  # type: ignore[union-attr]
    for agent in range(3):
        x = obs[agent]
        for number, layer in enumerate(layers):
            own = {key: value[agent % networks] for key, value in layer.items()}
            x = own["weight"] @ (x if number == 0 else np.maximum(x, 0)) + own["bias"]
        np.testing.assert_allclose(logits[agent], x, rtol=1e-5)


def test_layers_are_found_in_a_modules_state_in_order() -> None:
    state = {
        "encoder.critic_encoder.net.mlp.0.weight": np.zeros((5, 3)),
        "encoder.critic_encoder.net.mlp.0.bias": np.zeros(5),
        "encoder.actor_encoder.net.mlp.0.weight": np.full((5, 3), 1.0),
        "encoder.actor_encoder.net.mlp.0.bias": np.full(5, 1.0),
        "pi.log_std_clip_param_const": np.full(1, 20.0),
        "pi.net.mlp.0.weight": np.full((2, 5), 2.0),
        "pi.net.mlp.0.bias": np.full(2, 2.0),
        "vf.net.mlp.0.weight": np.zeros((1, 5)),
        "vf.net.mlp.0.bias": np.zeros(1),
    }
    assert [layer["weight"].ravel()[0] for layer in policy_layers(state)] == [1.0, 2.0]


def test_pictures_and_whole_numbers_are_refused() -> None:
    with pytest.raises(UserError, match="sees pictures"):
        policy(Discrete(2), Box((84, 84, 4), 0, 255, "uint8"))
    with pytest.raises(UserError, match="Box of int32"):
        policy(Box((2,), 0, 5, "int32"), Box((3,)))


def test_metrics_get_our_tags() -> None:
    told = {"total_loss": 1.0, "mean_pi_loss": 2.0, "vf_loss": 3.0, "mean_vf_loss": 4.0, "other": 5.0}
    assert learner_metrics(told) == {"loss/total": 1.0, "loss/policy": 2.0, "loss/value": 4.0}


@pytest.mark.parametrize(
    "space",
    [Discrete(3), MultiDiscrete((2, 3)), Box((2,), -1.0, 3.0), Box((2,))],
    ids=["discrete", "multi", "box", "free"],
)
@pytest.mark.parametrize("shared", [False, True])
def test_it_is_rllibs_own_network(rllib: Any, space: Space, shared: bool) -> None:
    torch = pytest.importorskip("torch", reason="RLlib's networks need torch: pip install -e '.[rllib-torch]'")
    with warnings.catch_warnings(action="ignore"):
        from ray.rllib.algorithms.ppo.torch.default_ppo_torch_rl_module import DefaultPPOTorchRLModule
        from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
        from ray.rllib.core.rl_module.rl_module import RLModuleSpec
        from ray.rllib.utils.spaces.space_utils import unsquash_action

        from marl.interop.spaces import to_gymnasium

        model = DefaultModelConfig(fcnet_hiddens=[5, 4], fcnet_activation="silu", vf_share_layers=shared)
        seen = to_gymnasium(Box((3,)))
        spec = RLModuleSpec(DefaultPPOTorchRLModule, seen, to_gymnasium(space), model_config=model)
        torch.manual_seed(0)
        module = spec.build()
        layers = [{key: x[None] for key, x in layer.items()} for layer in policy_layers(module.get_state())]
        made, role = policy(space, Box((3,)), activation="silu")
        obs = 10 * np.random.default_rng(2).normal(size=(3, 3)).astype(np.float32)
        with torch.no_grad():
            logits = module.forward_inference({"obs": torch.from_numpy(obs)})["action_dist_inputs"]
        theirs = module.get_inference_action_dist_cls().from_logits(logits)
        wanted = unsquash_action(theirs.to_deterministic().sample().numpy(), to_gymnasium(space))
    ours = made.distribution(role, layers, obs)
    if isinstance(space, Box):
        mean, log_std = np.split(logits.numpy(), 2, axis=-1)
        np.testing.assert_allclose(ours.mean, mean, rtol=1e-5, atol=1e-6)  # type: ignore[union-attr]
        np.testing.assert_allclose(ours.log_std, log_std, rtol=1e-5, atol=1e-6)  # type: ignore[union-attr]
    else:
        np.testing.assert_allclose(ours.logits, logits.numpy(), rtol=1e-5, atol=1e-6)  # type: ignore[union-attr]
    np.testing.assert_allclose(made.heads["crew"].action(ours.mode()), wanted, rtol=1e-5, atol=1e-6)


def test_our_defaults_are_rllibs(rllib: Any) -> None:
    pytest.importorskip("torch", reason="RLlib's algorithms need torch: pip install -e '.[rllib-torch]'")
    with warnings.catch_warnings(action="ignore"):
        from ray.rllib.algorithms.impala import IMPALAConfig
        from ray.rllib.algorithms.ppo import PPOConfig

        ppo, impala = PPOConfig(), IMPALAConfig()
    both = {
        "learning_rate": "lr",
        "gamma": "gamma",
        "value_coef": "vf_loss_coeff",
        "entropy_coef": "entropy_coeff",
        "max_grad_norm": "grad_clip",
        "train_batch_size": "total_train_batch_size",
    }
    of_ppo = {"epochs": "num_epochs", "minibatch_size": "minibatch_size", "gae_lambda": "lambda_", "clip": "clip_param"}
    of_ppo |= {"value_clip": "vf_clip_param", "kl_coef": "kl_coeff", "kl_target": "kl_target"}
    of_impala = {"rollout": "rollout_fragment_length", "rho_clip": "vtrace_clip_rho_threshold"}
    of_impala |= {"pg_rho_clip": "vtrace_clip_pg_rho_threshold"}
    for ours, theirs, names in (
        (RllibPPOConfig(), ppo, both | of_ppo),
        (RllibIMPALAConfig(), impala, both | of_impala),
    ):
        for mine, its in names.items():
            assert getattr(ours, mine) == getattr(theirs, its), mine
        assert ours.shared_value == theirs.model_config.get("vf_share_layers", True)
        assert list(ours.hidden_sizes) == theirs.model_config.get("fcnet_hiddens", [256, 256])


BRITTLE = '''
import gymnasium
import numpy as np


class Brittle(gymnasium.Env):
    """Fails at its second step in every other episode of the process."""

    observation_space = gymnasium.spaces.Box(0, 9, (1,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)
    made = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        Brittle.made += 1
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.t += 1
        if self.t == 2 and Brittle.made % 2:
            raise ValueError("it broke\\nbadly")
        return np.full(1, self.t, np.float32), 1.0, self.t == 3, False, {}
'''


def test_a_world_that_fails_is_cut_made_anew_and_given_up_in_the_end(rllib: Any, tmp_path: Path) -> None:
    (tmp_path / "brittle.py").write_text(BRITTLE)
    report = tmp_path / "faults.jsonl"
    world = f"gymnasium:{tmp_path / 'brittle.py'}"
    env = rllib.RllibEnv({"world": world, "faults": {"share": 0.0, "grace": 1, "report": str(report)}})
    ends = []

    def play() -> None:
        while True:
            env.reset(seed=0)
            over = False
            while not over:
                obs, reward, terminated, truncated, _ = env.step({"agent_0": 0})
                over = terminated["__all__"] or truncated["__all__"]
            ends.append((float(obs["agent_0"][0]), reward["agent_0"], terminated["__all__"]))

    with pytest.raises(WorldError, match=r"brittle\.py: step 1: ValueError: it broke$"):
        play()
    assert sorted(set(ends)) == [(1.0, 0.0, False), (3.0, 1.0, True)]  # the last good row; the end
    counted = env.counter.take()
    assert counted["length"] == counted["return/agent"] == sum(row for row, _, _ in ends)
    told = [json.loads(line) for line in report.read_text().splitlines()]
    assert [fault["fatal"] for fault in told] == [False, True]


def test_the_program_of_the_guide_configures_rllib(rllib: Any, repository: Path) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", (repository / "docs/guides/rllib.md").read_text(), re.DOTALL)
    found: dict[str, Any] = {}
    with warnings.catch_warnings(action="ignore"):
        exec(program, found)
    env = rllib.RllibEnv(found["config"].env_config)
    assert {found["config"].policy_mapping_fn(agent, None) for agent in env.possible_agents} == {"vehicle"}
