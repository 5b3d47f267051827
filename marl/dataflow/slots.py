"""Slots: groups of lanes that fill one trajectory after another, and can stop and go on between any two rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from marl.core.algorithm import Policy
from marl.core.collect import Lane, collect, init_lanes, restrict
from marl.core.env import AnyEnvironment
from marl.core.host_rows import Path, RowSpec
from marl.core.inference import Acted, time_step_arrays
from marl.core.roles import RoleSpec
from marl.core.types import Key, Trajectory, Tree
from marl.dataflow.groups import GroupHandle
from marl.dataflow.learning import Counts, count, trajectory_of

HostArray: TypeAlias = NDArray[Any]
Cast: TypeAlias = tuple[tuple[str, Policy], ...]


@dataclasses.dataclass(frozen=True)
class Filled:
    """A full rollout of one slot. trajectories: by learner, numpy leaves.  counts: plain numbers in NumPy form."""

    trajectories: dict[str, Trajectory]
    counts: Counts


class HostSlot:
    """Lanes whose worlds are not JAX. It takes turns with whoever infers: `step` holds the present row, `record` takes
    the actions for it, `handle.send` lets the worlds move, `landed` takes the row that came of it.

    length: rows T of a rollout.  learners: policies whose rows are kept.  warm_up: rows that are played and dropped
    before the first rollout begins, so that slots are not all full at the same moment.
    """

    def __init__(
        self,
        handle: GroupHandle,
        spec: RowSpec,
        roles: Sequence[RoleSpec],
        learners: Mapping[str, Policy],
        length: int,
        *,
        keep_state: bool,
        warm_up: int = 0,
    ) -> None:
        self.handle, self.block, self.spec = handle, handle.block, spec
        self.roles, self.learners, self.length, self.keep_state = roles, dict(learners), length, keep_state
        self.warm_up = warm_up
        lanes = self.block.lanes
        self.step = time_step_arrays(self.block.step)
        self.rows = {f.path: np.zeros((length + 1, lanes, *f.shape), f.dtype) for f in spec.step}
        self.actions = {f.path[0]: np.zeros((length, lanes, *f.shape), f.dtype) for f in spec.action}
        self.faulty = np.zeros((length, lanes), bool)  # transitions that failed
        self.lost = np.zeros((length + 1, lanes), bool)  # rows at which an episode could not go on after a restart
        self.extras: dict[str, list[HostArray]] = {}
        self._extras_form: dict[str, Any] = {}
        self.carry: dict[str, Tree] = {}
        self.t = 0
        self.total_rows = 0
        # What the running episodes amount to, and what brings a copy back to where its episode stands.
        self.returns = {role.name: np.zeros((lanes, role.size), np.float64) for role in roles}
        self.steps = np.zeros((2, lanes), np.int64)  # env steps, agent steps
        self.episode_seed = np.zeros(lanes, np.uint32)
        self.episode_row = np.zeros(lanes, np.int64)
        self._log: list[tuple[int, dict[str, HostArray]]] = []

    def start(self, seeds: HostArray) -> None:
        """Begin the first episodes. seeds: u32 `[B]`."""
        self.block.seed[:] = seeds
        self.handle.start()
        self.episode_seed[:] = self.block.seed
        self._copy_row(0)

    @property
    def full(self) -> bool:
        return self.t == self.length

    def record(self, acted: Acted) -> None:
        """Keep what was done on the present row, and put it where the worlds read it. acted: leaves `[B, ...]`."""
        t = self.t
        if t == 0:
            self.carry = {name: acted.carry[name] for name in self.learners}
        for role, array in self.block.action.items():
            array[:] = np.asarray(acted.action[role])
            self.actions[role][t] = array
        for name in self.learners:
            leaves, form = jax.tree.flatten(acted.extras[name])
            if name not in self.extras:
                self.extras[name] = [np.zeros((self.length, *leaf.shape), leaf.dtype) for leaf in leaves]
                self._extras_form[name] = form
            for kept, leaf in zip(self.extras[name], leaves, strict=True):
                kept[t] = np.asarray(leaf)
        self.block.seed[:] = np.asarray(acted.seed)

    def landed(self) -> Counts | None:
        """Take the row that the worlds moved to. Returns what the rows amounted to where a warm-up ends here."""
        t, block = self.t, self.block
        self.faulty[t] = block.fault
        if block.fault.any():  # the episode is cut at its last good row, which then counts for nobody
            for path, array in self.rows.items():
                if path[0] in ("alive", "truncated"):
                    array[t, block.fault] = path[0] == "truncated"
        self.t += 1
        self.total_rows += 1
        if block.first.any():
            self.episode_seed[block.first] = block.seed[block.first]
            self.episode_row[block.first] = self.total_rows
        self._copy_row(self.t)
        if self.warm_up:
            self.warm_up -= 1
            if not self.warm_up or self.full:
                return self._next_rollout()
        return None

    def _copy_row(self, t: int) -> None:
        for path, array in self.block.step.items():
            self.rows[path][t] = array

    def take(self, versions: Mapping[str, int]) -> Filled:
        """The full rollout, copied out of the slot, which begins another one on the same row."""
        lanes = self.block.lanes
        whole = time_step_arrays({p: a for p, a in self.rows.items() if self.keep_state or p[0] != "state"})
        trajectories = {}
        for name, policy in self.learners.items():
            extras = jax.tree.unflatten(self._extras_form[name], self.extras[name])
            make: Any = Trajectory  # of NumPy arrays
            trajectories[name] = jax.tree.map(
                np.array,
                make(
                    step=restrict(whole, policy.roles),
                    action={role: self.actions[role] for role in policy.roles},
                    extras=extras,
                    carry=self.carry[name],
                    next_action={},
                    version=np.full(lanes, versions[name], np.int32),
                ),
            )
        return Filled(trajectories, self._next_rollout())

    def _next_rollout(self) -> Counts:
        """Count the rows so far, keep their actions for replay, and begin again on the row in hand."""
        counts = self._count(self.t)
        begun = self.total_rows - self.t
        self._log.append((begun, {role: array[: self.t].copy() for role, array in self.actions.items()}))
        oldest = int(self.episode_row.min())
        self._log = [(start, part) for start, part in self._log if start + len(next(iter(part.values()))) > oldest]
        for array in self.rows.values():
            array[0] = array[self.t]
        self.lost[:] = False
        self.t = 0
        return counts

    def _count(self, rows: int) -> Counts:
        last = self.rows["last",][: rows + 1]
        counted = ~last[:-1] & ~self.faulty[:rows]
        broken = self.faulty[:rows] | self.lost[1 : rows + 1]
        ends = last[1:] & counted & ~broken
        acting = np.zeros(counted.shape, np.int64)
        for role in self.roles:
            acts = self.rows["alive", role.name][:rows]
            if ("acting", role.name) in self.rows:
                acts = acts & self.rows["acting", role.name][:rows]
            acting += acts.sum(-1)
        acting *= counted
        rewards = {r.name: self.rows["reward", r.name][1 : rows + 1] * counted[..., None] for r in self.roles}
        returns = {role.name: np.float64(0.0) for role in self.roles}
        length, episodes = 0, 0
        for lane in range(self.block.lanes):
            begin = 0
            for t in sorted({*np.flatnonzero((ends | broken)[:, lane]).tolist(), rows - 1}):
                part = slice(begin, t + 1)
                begin = t + 1
                for name, reward in rewards.items():
                    self.returns[name][lane] += reward[part, lane].sum(0)
                self.steps[:, lane] += counted[part, lane].sum(), acting[part, lane].sum()
                if ends[t, lane]:
                    episodes += 1
                    length += int(self.steps[0, lane])
                    for name in returns:
                        returns[name] += self.returns[name][lane].mean()
                if ends[t, lane] or broken[t, lane]:
                    self.steps[:, lane] = 0
                    for total in self.returns.values():
                        total[lane] = 0.0
        make: Any = Counts  # of NumPy's numbers
        made: Counts = make(
            env_steps=np.int64(counted.sum()),
            agent_steps=np.int64(acting.sum()),
            episodes=np.int64(episodes),
            returns=returns,
            length=np.int64(length),
            info={},
        )
        return made

    # ---- checkpoint ----------------------------------------------------------------------------------------------

    def snapshot(self) -> dict[str, Any]:
        """Everything but the lanes' memory: open rows, running sums, and each copy's episode so far."""
        return {
            "rows": {"/".join(path): array.copy() for path, array in self.rows.items()},
            "actions": {role: array.copy() for role, array in self.actions.items()},
            "faulty": self.faulty.copy(),
            "lost": self.lost.copy(),
            "extras": {name: [leaf.copy() for leaf in leaves] for name, leaves in self.extras.items()},
            "returns": {name: array.copy() for name, array in self.returns.items()},
            "steps": self.steps.copy(),
            "counters": np.array([self.t, self.total_rows, self.warm_up], np.int64),
            "episode_seed": self.episode_seed.copy(),
            "episode_row": self.episode_row.copy(),
            "log": [{"start": np.int64(start), "actions": dict(part)} for start, part in self._log],
            "row": {"/".join(path): array.copy() for path, array in self.block.arrays.items()},
        }

    def restore(self, stored: Mapping[str, Any], extras_form: Mapping[str, Any]) -> list[str]:
        """Go on from a snapshot. Every copy plays its episode's actions again; one whose world then shows another row
        begins a new episode.

        extras_form: by learner the tree structure of its extras.  Returns: what could not be brought back, in words.
        """
        for path in self.rows:
            self.rows[path][:] = stored["rows"]["/".join(path)]
        for role, array in stored["actions"].items():
            self.actions[role][:] = array
        self.faulty[:], self.lost[:] = stored["faulty"], stored["lost"]
        self.extras = {name: [np.array(leaf) for leaf in leaves] for name, leaves in stored["extras"].items()}
        self._extras_form = {name: extras_form[name] for name in self.extras}
        self.returns = {name: np.array(array) for name, array in stored["returns"].items()}
        self.steps = np.array(stored["steps"])
        self.t, self.total_rows, self.warm_up = (int(x) for x in stored["counters"])
        self.episode_seed[:] = stored["episode_seed"]
        self.episode_row[:] = stored["episode_row"]
        self._log = [
            (int(part["start"]), {r: np.array(a) for r, a in part["actions"].items()}) for part in stored["log"]
        ]
        row = {tuple(name.split("/")): np.array(array) for name, array in stored["row"].items()}
        return self._replay(row)

    def _replay(self, row: dict[Path, HostArray]) -> list[str]:
        lost = []
        begun = self.total_rows - self.t
        parts = [*self._log, (begun, {role: array[: self.t] for role, array in self.actions.items()})]
        for lane in range(self.block.lanes):
            if row["last",][lane]:
                continue  # the episode is over: the next row is another one's first
            since = int(self.episode_row[lane])
            actions = {
                role: np.concatenate([part[role][max(since - start, 0) :, lane] for start, part in parts])
                for role in self.actions
            }
            self.handle.replay(lane, int(self.episode_seed[lane]), actions)
            same = all(np.array_equal(array[lane], row[path][lane]) for path, array in self.block.step.items())
            if not same:
                lost.append(f"lane {lane}: its episode did not play again as it did, and was begun anew")
                row["last",][lane] = True
                self._forget(lane)
        for path, array in self.block.arrays.items():
            array[:] = row[path]
        return lost

    def _forget(self, lane: int) -> None:
        """An episode that cannot go on ends at the row in hand, by truncation."""
        self.rows["last",][self.t, lane] = self.lost[self.t, lane] = True
        for role in self.roles:
            self.rows["truncated", role.name][self.t, lane] = self.rows["alive", role.name][self.t, lane]


class JaxSlot:
    """Lanes whose world is JAX: a rollout is one call of `core.collect`."""

    def __init__(
        self,
        env: AnyEnvironment,
        policies: Mapping[str, Policy],
        learners: Sequence[str],
        length: int,
        keep_state: bool,
        device: jax.Device | None = None,
    ) -> None:
        self.device = device
        self.env, self.cast, self.learners = env, tuple(policies.items()), tuple(learners)
        self.length, self.keep_state = length, keep_state
        self.lanes: Lane | None = None

    def start(self, params: Mapping[str, Tree], keys: Key) -> None:
        """Fresh lanes, one a key `[B]`."""
        self.lanes = _begin(self.env, self.cast, *self._here((dict(params), keys)))

    def _here(self, tree: Tree) -> Tree:
        return tree if self.device is None else jax.device_put(tree, self.device)

    def fill(self, params: Mapping[str, Tree], versions: Mapping[str, int]) -> Filled:
        """One rollout with these parameters, by policy name."""
        numbers = {name: jnp.asarray(versions[name], jnp.int32) for name in self.learners}
        self.lanes, trajectories, counts = _roll(
            self.env,
            self.cast,
            self.learners,
            self.length,
            self.keep_state,
            *self._here((dict(params), self.lanes, numbers)),
        )
        return Filled(*jax.device_get((trajectories, counts)))


# Compiled once for a world, policies and sizes, whichever seeds and slots call them.


@partial(jax.jit, static_argnums=(0, 1))
def _begin(env: AnyEnvironment, cast: Cast, params: dict[str, Tree], keys: Key) -> Lane:
    return init_lanes(env, dict(cast), params, keys)


@partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _roll(
    env: AnyEnvironment,
    cast: Cast,
    learners: tuple[str, ...],
    length: int,
    keep_state: bool,
    params: dict[str, Tree],
    lanes: Lane,
    versions: dict[str, Any],
) -> Any:
    policies = dict(cast)
    lanes, rollout = collect(env, policies, params, lanes, length, record=learners, keep_state=keep_state)
    shares = {name: trajectory_of(policies[name], name, rollout, versions[name]) for name in learners}
    return lanes, shares, count(rollout)
