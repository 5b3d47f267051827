"""The `policy/` folder: published parameters and how to rebuild what plays them, without Ray or a learner's state."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from marl.core.algorithm import Policy
from marl.core.collect import restrict
from marl.core.errors import UserError
from marl.core.spaces import Dict, ObservationSpace
from marl.core.types import ByRole, TimeStep, Tree
from marl.io.checkpoint import load_arrays, save_arrays
from marl.io.files import read_json
from marl.runner.load import load_experiment
from marl.runner.plan import Plan, make_plan
from marl.runner.runs import resolve_run


def save_policy(folder: Path, params: Mapping[str, Tree], header: dict[str, Any]) -> None:
    """Write published parameters by policy name into `folder`, atomically."""
    host = jax.tree.map(np.asarray, dict(params))
    save_arrays(folder, host, header)


def seed_folder(run: Path, seed: int) -> Path:
    """Where a seed's own files lie: `seed_<n>/` in a group, the run folder itself otherwise."""
    own = run / f"seed_{seed}"
    return own if own.is_dir() else run


def run_seeds(run: Path) -> list[int]:
    """The training seeds of a run, from its meta.json."""
    return [int(seed) for seed in read_json(run / "meta.json")["seeds"]]


def policy_folder(run: Path, seed: int | None = None, which: str = "policy") -> Path:
    """Where the policy of a seed lies: `policy/` for a run of one seed, `seed_<n>/policy/` for a group.

    Raises: UserError if the run has no such seed, or has not reached its first checkpoint.
    """
    seeds = run_seeds(run)
    chosen = seeds[0] if seed is None else seed
    if chosen not in seeds:
        raise UserError(f"{run} has no seed {chosen}; it has {', '.join(map(str, seeds))}")
    folder = seed_folder(run, chosen) / which
    if not folder.is_dir():
        raise UserError(f"{run} holds no {which}/ yet: it is written at the first checkpoint")
    return folder


def load_run_policy(
    run: Path, seed: int | None = None, which: str = "policy"
) -> tuple[Plan, dict[str, Tree], dict[str, Any]]:
    """The plan of a run, the parameters of its policies as jax arrays, and the header saved with them."""
    params, header = load_arrays(policy_folder(run, seed, which))
    plan = make_plan(load_experiment(str(run / "config.yaml"), []).config)
    return plan, jax.tree.map(jnp.asarray, params), header


class LoadedPolicy:
    """A trained policy behind plain numpy calls: `.act(obs, carry)`.

    `obs`: by role `[n_role, ...]`, or just the array when the run has one role. The answer has the same form.
    """

    def __init__(self, plan: Plan, params: Mapping[str, Tree], *, greedy: bool, seed: int) -> None:
        self.roles = {spec.name: spec for spec in plan.env.roles}
        self._policies: dict[str, Policy] = dict(plan.policies)
        self._params = dict(params)
        self._key = jax.random.key(seed)
        self._greedy = greedy
        self._step = jax.jit(self._act)

    def _act(self, params: dict[str, Tree], carry: dict[str, Tree], step: TimeStep, key: Any) -> tuple[Tree, ByRole]:
        actions, after = {}, {}
        for index, (name, policy) in enumerate(self._policies.items()):
            own = key if len(self._policies) == 1 else jax.random.fold_in(key, index)
            after[name], chosen, _ = policy.act(
                params[name], carry[name], restrict(step, policy.roles), own, explore=not self._greedy
            )
            actions.update(chosen)
        return after, actions

    def act(self, obs: Any, carry: Any = None, *, action_mask: Mapping[str, Any] | None = None) -> tuple[Any, Any]:
        """Actions and the carry to hand back at the next step; leave `carry` out at the first step of an episode.

        Raises: UserError if a role is missing or an observation has another shape than the world's.
        """
        single = not isinstance(obs, Mapping)
        if single and len(self.roles) > 1:
            raise UserError(f"obs must be a dict by role ({', '.join(self.roles)})")
        by_role = {next(iter(self.roles)): obs} if single else dict(obs)
        arrays = {}
        for name, spec in self.roles.items():
            if name not in by_role:
                raise UserError(f"obs has no role '{name}'; expected {', '.join(self.roles)}")
            arrays[name] = _observation(name, spec.observation_space, by_role[name], spec.size)
        first = carry is None
        if first:
            carry = {name: policy.initial_carry() for name, policy in self._policies.items()}
        self._key, key = jax.random.split(self._key)

        def filled(value: Any, dtype: Any) -> ByRole:
            return {name: jnp.full((spec.size,), value, dtype) for name, spec in self.roles.items()}

        step = TimeStep(
            obs=arrays,
            reward=filled(0.0, jnp.float32),
            terminated=filled(False, bool),
            truncated=filled(False, bool),
            alive=filled(True, bool),
            first=jnp.asarray(first),
            last=jnp.asarray(False),
            action_mask=None if action_mask is None else {n: jnp.asarray(m) for n, m in action_mask.items()},
        )
        carry, actions = self._step(self._params, carry, step, key)
        numpy_actions = {name: np.asarray(a) for name, a in actions.items()}
        return (next(iter(numpy_actions.values())) if single else numpy_actions), carry


def _observation(role: str, space: ObservationSpace, given: Any, size: int) -> Tree:
    """An observation of a role as JAX arrays. Raises: UserError if it has another shape than the world's."""
    if isinstance(space, Dict):
        if not isinstance(given, Mapping) or set(given) != {key for key, _ in space.items}:
            raise UserError(f"obs of role '{role}' must be a dict of {', '.join(key for key, _ in space.items)}")
        return {key: _observation(f"{role}/{key}", part, given[key], size) for key, part in space.items}
    array = np.asarray(given, space.dtype)
    expected = (size, *space.shape)
    if array.shape != expected:
        raise UserError(f"obs of role '{role}' has shape {array.shape}, expected {expected}")
    return jnp.asarray(array)


def load_policy(
    run: str, *, seed: int | None = None, best: bool = False, greedy: bool = True, runs_dir: str = "runs"
) -> LoadedPolicy:
    """The trained policy of a run (a path, an id, a name or `latest`).

    seed: which training seed of a group (its lowest by default).  best: the one with the highest validation return.
    greedy: the most likely action instead of a sampled one.
    Raises: UserError if there is no such run, seed or policy.
    """
    plan, params, _ = load_run_policy(resolve_run(run, Path(runs_dir)), seed, "policy_best" if best else "policy")
    return LoadedPolicy(plan, params, greedy=greedy, seed=0)
