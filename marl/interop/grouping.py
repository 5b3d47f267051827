"""Which agents of a world share a role. Importing this imports no JAX."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Hashable, Mapping, Sequence

from marl.core.errors import UserError, did_you_mean

MAX_STEMS = 3  # agents of so many kinds with equal spaces give the role all their names, more of them none


def group(agents: Sequence[str], kinds: Mapping[str, Hashable]) -> dict[str, tuple[str, ...]]:
    """Agents with equal spaces as one role, named by what their names have in common, in the agents' own order.

    kinds: of each agent, whatever must be equal within a role.
    """
    by_kind: dict[Hashable, list[str]] = {}
    for agent in agents:
        by_kind.setdefault(kinds[agent], []).append(agent)
    roles: dict[str, tuple[str, ...]] = {}
    for members in by_kind.values():
        name, number = _name(members), 2
        while name in roles:
            name = f"{_name(members)}_{number}"
            number += 1
        roles[name] = tuple(members)
    return roles


def group_by_hand(
    agents: Sequence[str], kinds: Mapping[str, Hashable], wanted: Mapping[str, str | Sequence[str]]
) -> dict[str, tuple[str, ...]]:
    """The roles that somebody asked for.

    wanted: by role a list of agents, or a pattern of their names: `blue_*`, or a regular expression.
    Raises: UserError if an agent is in no role or in two, a name is no agent's, or the spaces in a role differ.
    """
    roles = {}
    for role, chosen in wanted.items():
        members = _chosen(role, chosen, agents)
        for agent in members:
            if kinds[agent] != kinds[members[0]]:
                raise UserError(f"role '{role}': agents '{members[0]}' and '{agent}' have different spaces or masks")
        roles[role] = members
    for agent in agents:
        held = [role for role, members in roles.items() if agent in members]
        if len(held) != 1:
            where = f"in the roles {' and '.join(held)}" if held else "in no role"
            raise UserError(f"agent '{agent}' is {where}, expected in exactly one; agents: {', '.join(agents)}")
    return roles


def _chosen(role: str, chosen: str | Sequence[str], agents: Sequence[str]) -> tuple[str, ...]:
    if not role.isidentifier():
        raise UserError(f"role '{role}' is no name; expected letters, digits and underscores")
    if not isinstance(chosen, str):
        for name in chosen:
            if name not in agents:
                raise UserError(f"role '{role}': no agent is called '{name}'{did_you_mean(str(name), agents)}")
        members = tuple(agent for agent in agents if agent in chosen)
    else:
        members = tuple(agent for agent in agents if fnmatch.fnmatchcase(agent, chosen)) or _matching(chosen, agents)
    if not members:
        raise UserError(f"role '{role}': '{chosen}' fits no agent; agents: {', '.join(agents)}")
    return members


def _matching(pattern: str, agents: Sequence[str]) -> tuple[str, ...]:
    try:
        return tuple(agent for agent in agents if re.fullmatch(pattern, agent))
    except re.error:
        return ()


def _name(members: Sequence[str]) -> str:
    """`adversary` for adversary_0 and adversary_1, `alice_bob` for alice_0 and bob_0, `agent` where nothing fits."""
    stems = sorted({re.sub(r"[\W_]*\d+$", "", agent) for agent in members})
    name = "_".join(stems) if len(stems) <= MAX_STEMS else "agent"
    name = re.sub(r"\W+", "_", name).strip("_").lower()
    return name if name.isidentifier() else "agent"
