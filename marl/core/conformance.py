"""Is this a world that every algorithm can train on? The checks behind `marl check ENV` and behind the tests of every
world.

A check looks at a few whole episodes played at random and says what breaks the contract of `core.env` and
`core.types`, and where. Nothing here knows any world.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from marl.core.env import AnyEnvironment
from marl.core.errors import unknown_name
from marl.core.spaces import Box, Dict, Discrete, MultiDiscrete, ObservationSpace, Space
from marl.core.trial import TOLERANCE, Trial, arrays, differences, leaves, take
from marl.core.types import TimeStep, Tree

LANES = 2  # copies compared with a loop
MAX_PROBLEMS = 5  # shown for one check


@dataclasses.dataclass(frozen=True)
class Finding:
    """What one check found. name: of the check.  ok: nothing is wrong.  detail: what was looked at, or what is
    wrong."""

    name: str
    ok: bool
    detail: str


def check_environment(
    env: AnyEnvironment, *, episodes: int = 2, seed: int = 0, only: Collection[str] | None = None
) -> list[Finding]:
    """Every finding about a world, in the order of `CHECKS`; the world conforms if all are `ok`.

    episodes: how many are played at random.  seed: of the episodes and of the random actions.  only: names of the
    checks to make, all if None. An exception the world raises is a finding, not a crash. Raises: UnknownNameError for
    a name in `only` that is no check.
    """
    for name in only or ():
        if name not in CHECKS:
            raise unknown_name("check", name, CHECKS)
    trial = Trial(env, episodes, seed)
    return [_find(name, check, trial) for name, check in CHECKS.items() if only is None or name in only]


def _find(name: str, check: Callable[[Trial], Iterator[str]], trial: Trial) -> Finding:
    try:
        problems = list(dict.fromkeys(check(trial)))
    except Exception as error:  # the world is somebody else's code: whatever it raises is what we report
        problems = [f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else '(no message)'}"]
    more = [f"and {len(problems) - MAX_PROBLEMS} more"] if len(problems) > MAX_PROBLEMS else []
    doc = (check.__doc__ or "").strip().rstrip(".")
    return Finding(name, not problems, "; ".join(problems[:MAX_PROBLEMS] + more) if problems else doc)


def check_roles(trial: Trial) -> Iterator[str]:
    """Roles, spaces, lane axis and max_steps are well formed."""
    names = [role.name for role in trial.roles]
    if not names or len(set(names)) < len(names):
        yield f"roles are {names}, expected at least one and no name twice"
    for role in trial.roles:
        if not role.name.isidentifier():
            yield f"role name {role.name!r} is no identifier"
        if role.size < 1:
            yield f"role {role.name} has size {role.size}"
        spaces = [*arrays("observation", role.observation_space), ("action", role.action_space, None)]
        for what, space, _ in spaces:
            yield from _space_problems(f"role {role.name}: {what} space", space)
        hash(role)
    if trial.env.lane_axis not in (0, -1):
        yield f"lane_axis is {trial.env.lane_axis}, expected 0 or -1"
    if trial.env.max_steps is not None and trial.env.max_steps < 1:
        yield f"max_steps is {trial.env.max_steps}, expected None or at least 1"


def check_types(trial: Trial) -> Iterator[str]:
    """Every leaf has an explicit dtype of 32 bits or fewer, and reset and step return the same tree."""
    key = jax.random.key(0)
    yield from _leaf_problems("default_params", jax.eval_shape(lambda x: x, trial.params))
    after_reset = jax.eval_shape(trial.env.reset, key, trial.params)
    yield from _leaf_problems("reset", after_reset)
    actions = {r.name: jnp.zeros((r.size, *r.action_space.shape), r.action_space.dtype) for r in trial.roles}
    after_step = jax.eval_shape(trial.env.step, key, after_reset[0], actions, trial.params)
    yield from _leaf_problems("step", after_step)
    one, other = _signature(after_reset), _signature(after_step)
    for path in one.keys() | other.keys():
        if one.get(path) != other.get(path):
            yield f"{path} is {one.get(path, 'absent')} after reset and {other.get(path, 'absent')} after step"


def check_shapes(trial: Trial) -> Iterator[str]:
    """Every field of a time step has the shape and dtype that the roles declare."""
    _, row = jax.eval_shape(trial.env.reset, jax.random.key(0), trial.params)
    names = {role.name for role in trial.roles}
    for field in ("obs", "reward", "terminated", "truncated", "alive"):
        if set(getattr(row, field)) != names:
            yield f"{field} has roles {sorted(getattr(row, field))}, expected {sorted(names)}"
            return
    for role in trial.roles:
        n = (role.size,)
        yield from _expect_in(f"obs of {role.name}", row.obs[role.name], role.observation_space, n)
        yield from _expect(f"reward of {role.name}", row.reward[role.name], n, "float32")
        for field in ("terminated", "truncated", "alive"):
            yield from _expect(f"{field} of {role.name}", getattr(row, field)[role.name], n, "bool")
        if row.action_mask is not None and role.name in row.action_mask:
            if not isinstance(role.action_space, Discrete):
                yield f"role {role.name} has an action_mask but no Discrete action space"
            else:
                mask = row.action_mask[role.name]
                yield from _expect(f"action_mask of {role.name}", mask, (*n, role.action_space.n), "bool")
        if row.acting is not None:
            yield from _expect(f"acting of {role.name}", row.acting.get(role.name), n, "bool")
        if role.state_space is not None:
            yield from _expect_in("state", row.state, role.state_space, ())
    for extra in set(row.action_mask or {}) - names:
        yield f"action_mask has role '{extra}', which there is not"
    for field in ("first", "last"):
        yield from _expect(field, getattr(row, field), (), "bool")
    for name, value in (row.info or {}).items():
        yield from _expect(f"info '{name}'", value, (), "float32")


def check_bounds(trial: Trial) -> Iterator[str]:
    """Observations and global states stay in their spaces, rewards and info are finite."""
    for where, row in trial.rows:
        for role in trial.roles:
            seen = list(arrays(f"obs of {role.name}", role.observation_space, row.obs[role.name]))
            if role.state_space is not None and row.state is not None:
                seen.extend(arrays("state", role.state_space, row.state))
            for what, space, value in seen:
                yield from _outside(what, value, space)
            if not np.isfinite(row.reward[role.name]).all():
                yield f"{where}: reward of {role.name} is {row.reward[role.name]}"
        for name, value in (row.info or {}).items():
            if not np.isfinite(value):
                yield f"{where}: info '{name}' is {value}"


def check_episodes(trial: Trial) -> Iterator[str]:
    """One first row and one last row an episode, no reward before the first action, no more than max_steps steps."""
    longest = trial.env.max_steps
    for index, episode in enumerate(trial.episodes):
        rows = episode.rows
        if not rows[0].first:
            yield f"episode {index}: the row of reset does not have `first`"
        if rows[0].last:
            yield f"episode {index}: the row of reset has `last`"
        if any(row.first for row in rows[1:]):
            yield f"episode {index}: a row of step has `first` (a world never resets itself)"
        if longest is not None and not rows[-1].last:
            yield f"episode {index}: no `last` after max_steps = {longest} steps"
        elif longest is not None and len(rows) - 1 > longest:
            yield f"episode {index}: took {len(rows) - 1} steps, more than max_steps = {longest}"
        for role, reward in rows[0].reward.items():
            if np.any(reward != 0):
                yield f"episode {index}: reward of {role} at the first row is {reward}, expected 0"
        if not any(alive.any() for alive in rows[0].alive.values()):
            yield f"episode {index}: nobody is alive at the first row"
        if any((rows[0].terminated[r] | rows[0].truncated[r]).any() for r in rows[0].alive):
            yield f"episode {index}: somebody has ended at the first row"


def check_ends(trial: Trial) -> Iterator[str]:
    """An agent ends once, by terminating or by truncation, and is not alive afterwards, nor acting."""
    for where, row in trial.rows:
        for role, acts in (row.acting or {}).items():
            if (acts & ~row.alive[role]).any():
                yield f"{where}: {role} acts though not alive"
    for where, before, row in trial.transitions:
        anyone = False
        for role, alive in row.alive.items():
            was, died, cut = before.alive[role], row.terminated[role], row.truncated[role]
            anyone = anyone or bool((was & ~died & ~cut).any())
            if (died & cut).any():
                yield f"{where}: {role} is both terminated and truncated"
            if ((died | cut) & ~was).any():
                yield f"{where}: {role} ends without having been alive"
            if (died & alive).any():
                yield f"{where}: {role} is alive though terminated"
            # At the end of time everybody who is left is still present; who leaves before the others is not.
            if (cut & alive).any() and not row.last:
                yield f"{where}: {role} is alive though truncated"
            if (was & ~alive & ~died & ~cut).any():
                yield f"{where}: {role} is gone without having ended"
            if row.last and (was & ~died & ~cut).any():
                yield f"{where}: the episode ends, {role} neither terminates nor is truncated"
        joins = any((row.alive[r] & ~before.alive[r]).any() for r in row.alive)
        if not anyone and not joins and not row.last:
            yield f"{where}: everybody has ended, but it is not `last`"


def check_rewards(trial: Trial) -> Iterator[str]:
    """An agent that is gone is paid nothing, and named terms add up to the mean reward of each role."""
    names = {role.name for role in trial.roles}
    for where, before, row in trial.transitions:
        for role, reward in row.reward.items():
            if np.any(reward[~before.alive[role]] != 0):
                yield f"{where}: {role} is paid {reward} after its end"
    for where, row in trial.rows:
        info = row.info or {}
        for name in info:
            if name.startswith("reward/") and (name.count("/") != 2 or name.split("/")[1] not in names):
                yield f"info '{name}' is not of the form reward/<role>/<term>"
        for role, reward in row.reward.items():
            terms = [float(value) for name, value in info.items() if name.startswith(f"reward/{role}/")]
            scale = max(1.0, *(abs(term) for term in terms), float(np.abs(reward).max()))
            if not terms:
                yield f"info has no term reward/{role}/<term>"
            elif abs(sum(terms) - float(reward.mean())) > TOLERANCE * scale:
                yield f"{where}: terms of {role} add up to {sum(terms):g}, mean reward is {float(reward.mean()):g}"


def check_masks(trial: Trial) -> Iterator[str]:
    """Every action mask allows something at every row, also to agents that are gone."""
    for where, row in trial.rows:
        for role, mask in (row.action_mask or {}).items():
            if not mask.any(-1).all():
                yield f"{where}: action_mask of {role} forbids everything to agent {int(mask.any(-1).argmin())}"


def check_determinism(trial: Trial) -> Iterator[str]:
    """A whole episode played again from the same keys with the same actions is the same, bit for bit."""
    again = trial.play(trial.seed)
    once = trial.episodes[0]
    if len(again.rows) != len(once.rows):
        yield f"the episode took {len(once.rows) - 1} steps and then {len(again.rows) - 1}"
    for t, (row, other) in enumerate(zip(once.rows, again.rows, strict=False)):
        yield from (f"row {t}: {path} differs" for path in differences(row, other, 0.0))
    yield from (f"last state: {path} differs" for path in differences(once.states[-1], again.states[-1], 0.0))


def check_jit(trial: Trial) -> Iterator[str]:
    """Compiled and uncompiled functions agree, and neither calls back into Python."""
    episode, keys = trial.episodes[0], jax.random.split(jax.random.key(trial.seed), 2)
    # Op by op outside; loops inside are compiled either way, which keeps this affordable for a real world.
    reset = trial.env.reset(keys[0], trial.params)
    step = trial.env.step(keys[1], episode.states[0], episode.actions[0], trial.params)
    yield from (f"reset: {p} differs" for p in differences(trial.reset(keys[0], trial.params), reset))
    compiled = trial.step(keys[1], episode.states[0], episode.actions[0], trial.params)
    yield from (f"step: {p} differs" for p in differences(compiled, step))
    program = jax.make_jaxpr(trial.env.step)(keys[1], episode.states[0], episode.actions[0], trial.params)
    if "callback" in str(program):
        yield "step calls back into Python, which a compiled rollout cannot do"


def check_vmap(trial: Trial) -> Iterator[str]:
    """A batch of copies, each with parameters of its own, does what each copy does alone."""
    axis = trial.env.lane_axis
    reset = jax.jit(jax.vmap(trial.env.reset, in_axes=(0, 0), out_axes=(axis, 0)))
    step = jax.jit(jax.vmap(trial.env.step, in_axes=(0, axis, 0, 0), out_axes=(axis, 0)))
    keys = jax.random.split(jax.random.key(trial.seed + 1), LANES)
    params = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (LANES, *jnp.shape(leaf))), trial.params)
    random = np.random.default_rng(trial.seed)
    alone = [trial.reset(key, trial.params) for key in keys]
    together = reset(keys, params)
    for t in range(2):
        for lane, one in enumerate(alone):
            batch = (take(together[0], lane, axis), take(together[1], lane, 0))
            yield from (f"row {t}: {path} differs" for path in differences(one, batch))
        acts = [trial.random_actions(jax.device_get(row), random) for _, row in alone]
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *acts)
        together = step(keys, together[0], stacked, params)
        alone = [trial.step(k, s, a, trial.params) for k, (s, _), a in zip(keys, alone, acts, strict=True)]


def check_render(trial: Trial) -> Iterator[str]:
    """Rendering gives a picture, uint8 of shape [H, W, 3], of the same size at the first and the last row."""
    states = trial.episodes[0].states
    pictures = [trial.env.render(state, trial.params) for state in (states[0], states[-1])]
    for picture in pictures:
        if not isinstance(picture, np.ndarray) or picture.dtype != np.uint8:
            yield f"a picture is {getattr(picture, 'dtype', type(picture).__name__)}, expected a NumPy array of uint8"
        elif picture.ndim != 3 or picture.shape[2] != 3 or 0 in picture.shape:
            yield f"a picture has shape {picture.shape}, expected (H, W, 3)"
    if len({np.shape(picture) for picture in pictures}) > 1:
        yield f"pictures change their size, {' and '.join(str(np.shape(p)) for p in pictures)}"


def _signature(state_and_row: tuple[Tree, TimeStep]) -> dict[str, str]:
    state, row = state_and_row
    named = {**{f"state{p}": x for p, x in leaves(state).items()}, **{f"row{p}": x for p, x in leaves(row).items()}}
    return {path: f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in named.items()}


def _leaf_problems(what: str, tree: Tree) -> Iterator[str]:
    for path, leaf in leaves(tree).items():
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            continue
        if leaf.weak_type:
            yield f"{what}{path} is weakly typed ({leaf.dtype}): give it a dtype"
        if leaf.dtype.itemsize > 4:
            yield f"{what}{path} is {leaf.dtype}, expected 32 bits or fewer"


def _space_problems(what: str, space: object) -> Iterator[str]:
    if not isinstance(space, Box | Discrete | MultiDiscrete):
        known = "one of marl.core.spaces" if not isinstance(space, Dict) else "a space of one array"
        yield f"{what} is a {type(space).__name__}, expected {known}"
    elif isinstance(space, Box) and not space.low < space.high:
        yield f"{what} is empty, from {space.low} to {space.high}"
    elif isinstance(space, Box) and "int" in space.dtype and not np.isfinite([space.low, space.high]).all():
        yield f"{what} of {space.dtype} needs finite bounds"


def _expect_in(what: str, tree: Tree, space: ObservationSpace, lead: tuple[int, ...]) -> Iterator[str]:
    for name, part, leaf in arrays(what, space, tree):
        yield from _expect(name, leaf, (*lead, *part.shape), part.dtype)


def _expect(what: str, leaf: Any, shape: tuple[int, ...], dtype: str) -> Iterator[str]:
    if not hasattr(leaf, "shape"):
        yield f"{what} is a {type(leaf).__name__}, expected an array"
    elif (leaf.shape, str(leaf.dtype)) != (shape, dtype):
        yield f"{what} is {leaf.dtype}{list(leaf.shape)}, expected {dtype}{list(shape)}"


def _outside(what: str, value: NDArray[Any], space: Space) -> Iterator[str]:
    match space:
        case Box():
            kind = value.dtype if np.issubdtype(value.dtype, np.floating) else np.float64
            low, high = np.asarray(space.low, kind), np.asarray(space.high, kind)
        case Discrete():
            low, high = np.asarray(0), np.asarray(space.n - 1)
        case MultiDiscrete():
            low, high = np.asarray(0), np.asarray(space.nvec) - 1
    if not np.isfinite(value).all():
        yield f"{what} is not finite"
    elif (value < low).any() or (value > high).any():
        yield f"{what} leaves its space: it reaches {value.min():g} and {value.max():g}, bounds are {low} and {high}"


CHECKS: dict[str, Callable[[Trial], Iterator[str]]] = {
    "roles": check_roles,
    "types": check_types,
    "shapes": check_shapes,
    "bounds": check_bounds,
    "episodes": check_episodes,
    "ends": check_ends,
    "rewards": check_rewards,
    "masks": check_masks,
    "determinism": check_determinism,
    "jit": check_jit,
    "vmap": check_vmap,
    "render": check_render,
}
