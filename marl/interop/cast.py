"""Who plays in a PettingZoo world: the agents' spaces, roles, masks and places. Importing this imports no JAX."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from gymnasium import spaces
from numpy.typing import NDArray

from marl.core.errors import UserError, WorldError
from marl.core.host import HostRow
from marl.core.roles import RoleSpec
from marl.core.spaces import Dict, Discrete
from marl.interop import host_spaces
from marl.interop.grouping import group, group_by_hand
from marl.interop.host_spaces import INNER, MASK
from marl.interop.pictures import Pictures

SMALL_STATE = 4096  # elements; a central critic over more is asked for by name
Source = Literal["observation", "info"]


@dataclasses.dataclass(frozen=True)
class Cast:
    """The agents of a world, by name.

    members: agents by role.  observation_spaces: without masks.  mask_from: where the masks of an agent come from.
    inner: agents whose observation is one key of what the world gives.  state_space: None if there is no global state.
    declared: the world says who may appear (`possible_agents`).
    """

    roles: tuple[RoleSpec, ...]
    members: dict[str, tuple[str, ...]]
    place: dict[str, tuple[str, int]]
    observation_spaces: dict[str, host_spaces.Foreign]
    action_spaces: dict[str, host_spaces.Foreign]
    mask_from: dict[str, Source]
    inner: frozenset[str]
    state_space: host_spaces.Foreign | None
    declared: bool
    pictures: Pictures

    @property
    def masked(self) -> frozenset[str]:
        """The roles whose agents have action masks."""
        return frozenset(role for role, names in self.members.items() if names[0] in self.mask_from)

    def stranger(self, agent: object) -> WorldError:
        """The error for an agent that the rows have no place for."""
        known = (
            "possible_agents" if self.declared else "the agents of the first reset, and there are no possible_agents"
        )
        return WorldError(f"agent '{agent}' is not among {known}: {', '.join(self.place)}")

    def blank(self, agent: str, row: HostRow) -> None:
        """Zeros for an agent that is not there, and a mask that allows all."""
        role, at = self.place[agent]
        host_spaces.fill(host_spaces.place(row.obs[role], at), 0)
        if agent in self.mask_from:
            row.action_mask[role][at] = True

    def mask_of(self, agent: str, row: HostRow) -> NDArray[Any]:
        """The place of an agent's mask."""
        role, at = self.place[agent]
        mask: NDArray[Any] = row.action_mask[role][at]
        return mask

    def find_mask(self, agent: str, observation: Any, infos: Any) -> Any:
        """The mask of an agent. Raises: WorldError if it is not where masks were at the first reset."""
        source = self.mask_from[agent]
        found = observation if source == "observation" else infos.get(agent) if isinstance(infos, dict) else None
        if not isinstance(found, dict) or MASK not in found:
            raise WorldError(
                f"agent '{agent}': there is no action_mask in its {source}, as there was at the first reset"
            )
        return found[MASK]

    def without_mask(self, agent: str, observation: Any) -> Any:
        """What the agent observes beside its mask."""
        if agent not in self.inner:
            return observation
        if not isinstance(observation, dict) or INNER not in observation:
            raise WorldError(f"agent '{agent}': its observation has no key '{INNER}', expected {INNER} and {MASK}")
        return observation[INNER]

    def writer(self, agent: str, row: HostRow) -> host_spaces.Write:
        """What writes an agent's observations into a row."""
        role, at = self.place[agent]
        target = host_spaces.place(row.obs[role], at)
        return host_spaces.writer(self.observation_spaces[agent], target, agent, pictures=self.pictures)

    def state_writer(self, row: HostRow) -> host_spaces.Write | None:
        """What writes the global state into a row."""
        if self.state_space is None:
            return None
        return host_spaces.writer(self.state_space, row.state, "all", "state")

    def write_state(self, env: Any, row: HostRow, put: host_spaces.Write | None, over: bool = False) -> None:
        """The global state into the row. over: it is the episode's last row, where many worlds cannot give a state any
        more; nobody needs it if all agents died, and the row then holds zeros."""
        if put is None:
            return
        try:
            put(env.state())
        except Exception:
            if not over or any(truncated.any() for truncated in row.truncated.values()):
                raise
            host_spaces.fill(row.state, 0)


def cast_of(
    env: Any,
    agents: list[str],
    infos: Any,
    wanted: Mapping[str, str | Sequence[str]] | None,
    state: bool | None,
    max_steps: int | None,
    pictures: Pictures,
) -> Cast:
    """The cast of a PettingZoo environment that has just been reset.

    agents: those that are there now.  infos: of that reset, where masks may be.  wanted: roles by hand.  state: take
    the global state where there is one; None takes small ones, no pictures. Raises: UserError if a space or a role
    cannot be used.
    """
    possible = list(getattr(env, "possible_agents", None) or agents)
    if not possible:
        raise UserError("the world has no agents: `possible_agents` and `agents` are empty")
    for agent in possible:
        if not isinstance(agent, str):
            raise UserError(f"agent {agent!r} is no name, expected text such as 'agent_0'")
    observed, acting = {}, {}
    masks: dict[str, Source] = {}
    inner = set()
    kinds: dict[str, tuple[Any, ...]] = {}
    seen: list[Any] = []
    for agent in possible:
        whole, acting[agent] = _space(env.observation_space, agent), _space(env.action_space, agent)
        observed[agent], in_observation = host_spaces.split_mask(whole, acting[agent])
        ours = (
            host_spaces.observation_space(observed[agent], agent, pictures),
            host_spaces.action_space(acting[agent], agent),
        )
        info = infos.get(agent) if isinstance(infos, dict) else None
        if in_observation:
            masks[agent] = "observation"
            if observed[agent] is whole.spaces.get(INNER):
                inner.add(agent)
        elif isinstance(ours[1], Discrete) and isinstance(info, dict) and MASK in info:
            masks[agent] = "info"
        kinds[agent] = (*ours, masks.get(agent), _rank(seen, (whole, acting[agent])))
    members = group(possible, kinds) if wanted is None else group_by_hand(possible, kinds, wanted)
    state_space = _state_space(env, state) if state is not False else None
    ours_state = None if state_space is None else host_spaces.observation_space(state_space, "all")
    assert not isinstance(ours_state, Dict)
    return Cast(
        roles=tuple(
            RoleSpec(role, len(names), kinds[names[0]][0], kinds[names[0]][1], ours_state, max_steps)
            for role, names in members.items()
        ),
        members=members,
        place={agent: (role, at) for role, names in members.items() for at, agent in enumerate(names)},
        observation_spaces=observed,
        action_spaces=acting,
        mask_from=masks,
        inner=frozenset(inner),
        state_space=state_space,
        pictures=pictures,
        declared=bool(getattr(env, "possible_agents", None)),
    )


def _space(method: Any, agent: str) -> Any:
    try:
        space = method(agent)
    except Exception as error:  # foreign code
        raise UserError(
            f"agent '{agent}': {method.__name__}('{agent}') raised {type(error).__name__}: {error}; "
            "expected the agent's space"
        ) from error
    if not isinstance(space, spaces.Space):
        raise UserError(f"agent '{agent}': {method.__name__} gave {type(space).__name__}, expected a Gymnasium space")
    return space


def _state_space(env: Any, wanted: bool | None) -> host_spaces.Foreign | None:
    """The space of the global state, if the world has one and gives it."""
    try:
        space = env.state_space
        if not isinstance(space, spaces.Box) or (wanted is None and math.prod(space.shape) > SMALL_STATE):
            return None
        env.state()
    except (AttributeError, NotImplementedError):
        return None
    return space


def _rank(seen: list[Any], spaces_of_agent: tuple[Any, Any]) -> int:
    """A number for a pair of spaces, the same for equal ones: they cannot be hashed, and ours tell apart less."""
    if spaces_of_agent not in seen:
        seen.append(spaces_of_agent)
    return seen.index(spaces_of_agent)
