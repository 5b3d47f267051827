"""Targets over time, and the three conventions that say which rows count.

Rows are time-major. A transition is rows t -> t+1 of a trajectory of T+1 rows; `reward[t+1]` answers `action[t]`. Every
target function takes T rows and any trailing axes, and stops gradients through its result.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from marl.core.errors import ShapeError
from marl.core.types import Array, TimeStep


def valid(step: TimeStep, role: str) -> Array:
    """Which transitions count, bool `[T, B, n]`: the agent acts there and the row is not the end of an episode."""
    counts: Array = step.alive[role][:-1] & ~step.last[:-1, :, None]
    return counts if step.acting is None else counts & step.acting[role][:-1]


def discount(step: TimeStep, role: str, gamma: float | Array) -> Array:
    """Discount of the value after each transition, f32 `[T, B, n]`: 0 after termination, `gamma` after truncation."""
    going_on: Array = 1.0 - step.terminated[role][1:].astype(jnp.float32)
    return jnp.asarray(gamma, jnp.float32) * going_on


def cut(step: TimeStep, role: str) -> Array:
    """Where a sum over time stops after transition t, bool `[T, B, n]`: episode end, or the agent's own truncation."""
    stop: Array = (step.last[1:] | step.last[:-1])[..., None] | step.truncated[role][1:]
    return stop


class Turns(NamedTuple):
    """Transitions from one own turn of an agent to its next, `[T, B, n]`. Rows where it does not act are neutral: what
    is computed backwards passes through them. lam: the given lambda, and 1 at those rows."""

    reward: Array
    discount: Array
    next_value: Array
    cut: Array
    lam: Array


def own_turns(
    step: TimeStep, role: str, reward: Array, discount: Array, value: Array, cut: Array, lam: float | Array
) -> Turns:
    """The arguments of `gae` and `vtrace` where agents take turns; unchanged where all act at every row.

    The reward of a turn is the sum until the agent's next one, discounted once; it bootstraps from the value there, or
    from that of the row where the sum is cut or the rows end.

    Args: reward, discount, cut: of each row's transition, `[T, B, n]`.  value: of all rows, `[T+1, B, n]`.
    """
    lam = jnp.broadcast_to(jnp.asarray(lam, reward.dtype), reward.shape)
    if step.acting is None:
        return Turns(reward, discount, value[1:], cut, lam)
    # The agent's transition ends at row t+1 if it acts there, if the sum is cut there, or if there is no further row.
    lands = (step.acting[role][1:] | cut | step.terminated[role][1:]).at[-1].set(True)

    def back(later: Any, row: Any) -> tuple[Any, Any]:
        ends, reward, *own = row
        total = reward + jnp.where(ends, 0.0, later[0])
        new = (total, *(jnp.where(ends, a, b) for a, b in zip(own, later[1:], strict=True)))
        return new, new

    start = (reward[-1], discount[-1], value[-1], cut[-1])
    rows = (lands, reward, discount, value[1:], cut)
    summed, discounted, landed, stopped = jax.lax.scan(back, start, rows, reverse=True)[1]
    acts = step.acting[role][:-1]
    return Turns(
        reward=jnp.where(acts, summed, 0.0),
        discount=jnp.where(acts, discounted, 1.0),
        next_value=jnp.where(acts, landed, value[:-1]),
        cut=acts & stopped,
        lam=jnp.where(acts, lam, 1.0),
    )


def advantages(
    step: TimeStep,
    role: str,
    reward: Array,
    value: Array,
    gamma: float | Array,
    lam: float | Array,
    log_ratio: Array | None = None,
) -> tuple[Array, Array]:
    """Advantages and value targets `[T, B, n]` of a role's transitions, by the conventions above: GAE, or V-trace.

    With `lam` 1, GAE's targets are the n-step returns to the end of the rows.

    Args: reward: of each transition, `[T, B, n]`.  value: of all rows, `[T+1, B, n]`.  log_ratio: log pi - log mu of
    each transition for V-trace, `[T, B, n]`; None for data that the policy drew itself.
    """
    after, stop = discount(step, role, gamma), cut(step, role)
    turns = own_turns(step, role, reward, after, value, stop, lam)
    now = value[:-1]
    if log_ratio is None:
        advantage = gae(turns.reward, turns.discount, now, turns.next_value, turns.lam, turns.cut)
        return advantage, advantage + now
    if step.acting is not None:  # what is drawn for an agent that does not act is never done
        log_ratio = jnp.where(step.acting[role][:-1], log_ratio, 0.0)
    target, advantage = vtrace(log_ratio, turns.reward, turns.discount, now, turns.next_value, turns.lam, turns.cut)
    return advantage, target


def discounted_returns(
    reward: Array, discount: Array, cut: Array | None = None, next_value: Array | None = None
) -> Array:
    """Sums of discounted rewards; where a sum is cut (and at its last row) it goes on with `next_value`, or with 0.

    G_t = r_t + d_t * (v_{t+1} if cut_t else G_{t+1}),   G_T = v_T.

    Args: reward, discount, next_value: `[T, ...]`, of transition t.  cut: bool `[T, ...]` or None for never.
    Raises: ShapeError if the shapes differ.
    """
    after = jnp.zeros_like(reward) if next_value is None else next_value
    return lambda_returns(reward, discount, after, 1.0, cut)


def n_step_returns(reward: Array, discount: Array, next_value: Array, n: int, cut: Array | None = None) -> Array:
    """n rewards, then the value; fewer rewards where the sum is cut or the rows end.

    G^1_t = r_t + d_t v_{t+1},   G^k_t = r_t + d_t * (v_{t+1} if cut_t else G^{k-1}_{t+1})   (Sutton & Barto, ch. 7).

    Raises: ShapeError if the shapes differ or n is less than 1.
    """
    if n < 1:
        raise ShapeError(f"n_step_returns needs n >= 1, got {n}")
    stop = _check(reward, discount, next_value, cut=cut)
    result = reward + discount * next_value
    for _ in range(min(n, reward.shape[0]) - 1):
        later = jnp.concatenate([result[1:], next_value[-1:]])
        result = reward + discount * jnp.where(stop, next_value, later)
    return jax.lax.stop_gradient(result)


def lambda_returns(
    reward: Array, discount: Array, next_value: Array, lam: float | Array, cut: Array | None = None
) -> Array:
    """TD(lambda) targets.

    G_t = r_t + d_t * ((1 - lam) v_{t+1} + lam G_{t+1}), and r_t + d_t v_{t+1} where cut   (Sutton & Barto, ch. 12).

    Args: reward, discount, next_value: `[T, ...]` for transition t; `next_value` is the true value after it.
    Raises: ShapeError if the shapes differ.
    """
    stop = _check(reward, discount, next_value, cut=cut)
    weight = jnp.where(stop, 0.0, jnp.asarray(lam, reward.dtype)).at[-1].set(0.0)
    base = reward + discount * (1.0 - weight) * next_value
    return jax.lax.stop_gradient(_linear_backward(base, discount * weight))


def gae(
    reward: Array, discount: Array, value: Array, next_value: Array, lam: float | Array, cut: Array | None = None
) -> Array:
    """Generalised advantage estimates (Schulman et al. 2016, eq. 16).

    delta_t = r_t + d_t v_{t+1} - v_t,   A_t = delta_t + lam d_t A_{t+1}, without the last term where cut.

    Args: reward, discount, value, next_value: `[T, ...]` for transition t.  lam: in [0, 1].  cut: bool `[T, ...]`.
    Raises: ShapeError if the shapes differ.
    """
    stop = _check(reward, discount, value, next_value, cut=cut)
    delta = reward + discount * next_value - value
    decay = jnp.where(stop, 0.0, jnp.asarray(lam, reward.dtype)) * discount
    return jax.lax.stop_gradient(_linear_backward(delta, decay))


def vtrace(
    log_ratio: Array,
    reward: Array,
    discount: Array,
    value: Array,
    next_value: Array,
    lam: float | Array = 1.0,
    cut: Array | None = None,
    clip_rho: float = 1.0,
    clip_c: float = 1.0,
) -> tuple[Array, Array]:
    """Off-policy corrected value targets and policy-gradient advantages (Espeholt et al. 2018, eqs. 1 and 4).

    Args: log_ratio: log pi(a|s) - log mu(a|s), `[T, ...]`; the others as in `gae`.
    Returns: targets v_s and advantages rho * (r + d v_{s+1} - v), `[T, ...]`.
    Raises: ShapeError if the shapes differ.
    """
    stop = _check(reward, discount, value, next_value, log_ratio, cut=cut)
    ratio = jnp.exp(log_ratio)
    rho, c = jnp.minimum(ratio, clip_rho), jnp.asarray(lam, reward.dtype) * jnp.minimum(ratio, clip_c)
    error = _linear_backward(rho * (reward + discount * next_value - value), jnp.where(stop, 0.0, discount * c))
    later = jnp.concatenate([error[1:], jnp.zeros_like(error[:1])])
    next_target = next_value + jnp.where(stop, 0.0, later)
    advantage = rho * (reward + discount * next_target - value)
    return jax.lax.stop_gradient(value + error), jax.lax.stop_gradient(advantage)


def _linear_backward(x: Array, decay: Array) -> Array:
    """Solves y_t = x_t + decay_t * y_{t+1} with y_T = 0, in log2(T) vector steps instead of T scalar ones."""

    def join(later: tuple[Array, Array], now: tuple[Array, Array]) -> tuple[Array, Array]:
        return now[0] * later[0], now[1] + now[0] * later[1]

    result: Array = jax.lax.associative_scan(join, (decay, x), reverse=True)[1]
    return result


def _check(first: Array, *others: Array, cut: Array | None) -> Array:
    """The cut mask (all False if None), after comparing shapes. Raises: ShapeError."""
    shapes = [first.shape, *(o.shape for o in others), *([] if cut is None else [cut.shape])]
    if len(set(shapes)) > 1:
        raise ShapeError(f"arrays over time must have one shape, got {', '.join(map(str, shapes))}")
    if first.ndim == 0 or first.shape[0] == 0:
        raise ShapeError(f"arrays over time need at least one row, got shape {first.shape}")
    return jnp.zeros(first.shape, bool) if cut is None else cut
