"""What is trained with RLlib, and what its learner holds and says, as plain arrays and numbers. Nothing here imports
Ray."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from marl.core.errors import CheckpointError
from marl.interop.rllib_world import Faults

Tree = Any

TAGS = {  # by our tag, what RLlib's PPO or IMPALA calls it
    "loss/total": ("total_loss",),
    "loss/policy": ("policy_loss", "mean_pi_loss"),
    "loss/value": ("mean_vf_loss", "vf_loss"),
    "policy/entropy": ("entropy",),
    "policy/kl": ("mean_kl_loss",),
    "policy/kl_coef": ("curr_kl_coeff",),
    "value/explained_variance": ("vf_explained_var",),
    "optim/learning_rate": ("default_optimizer_learning_rate",),
    "optim/grad_norm": ("gradients_default_optimizer_global_norm",),
}


@dataclasses.dataclass(frozen=True)
class Training:
    """What to train. algorithm: `PPO` or `IMPALA`.  options: of the algorithm, by the names of `marl.agents.rllib`.
    world, world_options: as in `RllibEnv`.  modules: by agent the module (network) that plays it."""

    algorithm: str
    options: Mapping[str, Any]
    world: str
    world_options: Mapping[str, Any]
    modules: Mapping[str, str]
    faults: Faults
    num_env_runners: int
    envs_per_runner: int
    seed: int


class Iteration(NamedTuple):
    """What an iteration did. counts: see `rllib_world.Counter`.  metrics: the learner's, by module and tag.  lag: by
    how many updates the parameters that acted were older than the learner's when it began."""

    counts: dict[str, float]
    metrics: dict[str, dict[str, float]]
    lag: float


def part(result: Mapping[str, Any], *keys: str) -> Mapping[str, Any]:
    """A nested part of RLlib's results, empty where it is missing."""
    for key in keys:
        result = result.get(key) or {}
    return result


def learner_metrics(told: Mapping[str, Any]) -> dict[str, float]:
    """A module's metrics by our tags."""
    found = {tag: [told[name] for name in names if told.get(name) is not None] for tag, names in TAGS.items()}
    return {tag: float(values[0]) for tag, values in found.items() if values}


def updates(learner: Any) -> int:
    """How many batches a learner has learned from."""
    return int(learner._weights_seq_no)


def learner_state(learner: Any, modules: Sequence[str]) -> Tree:
    """A learner as a plain tree of arrays: networks, optimisers, KL weights, torch's random numbers."""
    import torch

    state = learner.get_state()
    kl = getattr(learner, "curr_kl_coeffs_per_module", None)
    return {
        "modules": {name: dict(own) for name, own in state["rl_module"].items()},
        "optimizers": {
            name: {str(i): {k: np.asarray(x) for k, x in b.items()} for i, b in own["state"]["state"].items()}
            for name, own in state["optimizer"].items()
        },
        "kl": {} if kl is None else {name: np.float64(kl[name].item()) for name in modules},
        "updates": np.int64(updates(learner)),
        "torch_rng": torch.get_rng_state().numpy().copy(),
    }


def restore_learner(learner: Any, stored: Tree) -> None:
    """The inverse of `learner_state`, on a learner that has just been built; what the optimisers are set to is its own.

    Raises: CheckpointError if it is of other networks.
    """
    import torch

    own = learner.get_state()
    if _shapes(own["rl_module"]) != _shapes(stored["modules"]):
        raise CheckpointError("the checkpoint's networks have other shapes than this run's")
    optimizers = {}
    for name, mine in own["optimizer"].items():
        buffers = {int(i): dict(each) for i, each in stored["optimizers"][name].items()}
        optimizers[name] = {**mine, "state": {**mine["state"], "state": buffers}}
    learner.set_state(
        {"rl_module": stored["modules"], "optimizer": optimizers, "weights_seq_no": int(stored["updates"])}
    )
    for name, value in stored["kl"].items():
        learner.curr_kl_coeffs_per_module[name].data.fill_(float(value))
    torch.set_rng_state(torch.from_numpy(np.array(stored["torch_rng"], np.uint8)))


def policy_layers(state: Mapping[str, NDArray[Any]]) -> list[dict[str, NDArray[np.float32]]]:
    """The layers of RLlib's default policy network, in order, from the state of a module."""
    encoder = (
        "encoder.actor_encoder." if any(k.startswith("encoder.actor_encoder.") for k in state) else "encoder.encoder."
    )
    names = [k for part in (encoder, "pi.") for k in state if k.startswith(part) and k.endswith(".weight")]
    return [
        {"weight": np.array(state[k], np.float32), "bias": np.array(state[k.replace(".weight", ".bias")], np.float32)}
        for k in names
    ]


def _shapes(modules: Mapping[str, Mapping[str, Any]]) -> dict[tuple[str, str], tuple[int, ...]]:
    return {(module, name): np.shape(x) for module, own in modules.items() for name, x in own.items()}


def _part(result: Mapping[str, Any], *keys: str) -> Mapping[str, Any]:
    """A nested part of RLlib's results, empty where it is missing."""
    for key in keys:
        result = result.get(key) or {}
    return result
