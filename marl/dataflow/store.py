"""The parameter store: which versions of which policy exist, under which names, and who of the past to play against."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import numpy as np

from marl.core.errors import UnknownNameError, UserError, unknown_name
from marl.dataflow.plain import Tree, pack_json, plain, unpack_json

LATEST = "latest"


@dataclasses.dataclass(frozen=True)
class Past:
    """One of the retained versions before the latest (the latest if there is no other), drawn with `seed`: the same
    seed and the same retained versions give the same draw, whatever was drawn before.

    how: `uniform` over all of them; `recent`: over the newest `last`; `best`: over the `last` with the highest
    metadata `key` (versions without it are left out).
    """

    how: Literal["uniform", "recent", "best"] = "uniform"
    seed: int = 0
    last: int = 1
    key: str = ""

    def __post_init__(self) -> None:
        if self.how not in ("uniform", "recent", "best"):
            raise unknown_name("selector of past versions", self.how, ("uniform", "recent", "best"))
        if self.seed < 0 or self.last < 1 or (self.how == "best" and not self.key):
            raise UserError(f"{self}: seed must be >= 0, last >= 1, and `best` needs the key of a metadata value")


Selector: TypeAlias = int | str | Past  # a version, LATEST or a tag, or one of the past


@dataclasses.dataclass
class _Policy:
    latest: int
    params: dict[int, Tree] = dataclasses.field(default_factory=dict)
    metadata: dict[int, dict[str, Any]] = dataclasses.field(default_factory=dict)
    tags: dict[str, int] = dataclasses.field(default_factory=dict)
    pins: dict[int, int] = dataclasses.field(default_factory=dict)


class ParameterStore:
    """Versions count 0 (the initial parameters), 1, 2, ... by policy. What is published must not change afterwards.

    Retained are the newest `keep` versions that have no tag, and any that is tagged, or pinned because open chunks act
    with it.  Raises: ValueError if keep < 1; every method UnknownNameError for a policy, version or tag that is not
    there.
    """

    def __init__(self, keep: int = 10) -> None:
        if keep < 1:
            raise ValueError(f"keep must be at least 1, got {keep}")
        self.keep = keep
        self._policies: dict[str, _Policy] = {}

    def publish(self, policy: str, params: Tree, metadata: Mapping[str, Any] | None = None) -> int:
        """Store the next version and return its number. metadata: JSON values (else TypeError)."""
        checked = _checked(metadata or {})
        entry = self._policies.setdefault(policy, _Policy(latest=-1))
        entry.latest += 1
        entry.params[entry.latest] = params
        entry.metadata[entry.latest] = checked
        self._prune(entry)
        return entry.latest

    def latest(self, policy: str) -> tuple[int, Tree]:
        """(version, params) of the newest version."""
        entry = self._entry(policy)
        return entry.latest, entry.params[entry.latest]

    def get(self, policy: str, selector: Selector = LATEST) -> tuple[int, Tree]:
        """(version, params) of what is selected."""
        version = self.resolve(policy, selector)
        return version, self._policies[policy].params[version]

    def resolve(self, policy: str, selector: Selector) -> int:
        """The version that is selected."""
        entry = self._entry(policy)
        if isinstance(selector, Past):
            return _draw(policy, entry, selector)
        if isinstance(selector, str):
            if selector == LATEST:
                return entry.latest
            if selector not in entry.tags:
                raise unknown_name(f"tag of policy '{policy}'", selector, (*entry.tags, LATEST))
            return entry.tags[selector]
        if selector not in entry.params:
            retained = sorted(entry.params)
            nearest = min(retained, key=lambda version: abs(version - selector))
            raise UnknownNameError(
                f"policy '{policy}' has no version {selector}; the nearest retained is {nearest} of {retained}"
            )
        return int(selector)

    def policies(self) -> tuple[str, ...]:
        return tuple(self._policies)

    def versions(self, policy: str) -> tuple[int, ...]:
        """The retained versions, oldest first."""
        return tuple(sorted(self._entry(policy).params))

    def tags(self, policy: str) -> dict[str, int]:
        return dict(self._entry(policy).tags)

    def metadata(self, policy: str, selector: Selector = LATEST) -> dict[str, Any]:
        return dict(self._entry(policy).metadata[self.resolve(policy, selector)])

    def annotate(self, policy: str, version: int, metadata: Mapping[str, Any]) -> None:
        """Add to a version's metadata, for example the score of its evaluation."""
        self._entry(policy).metadata[self.resolve(policy, version)].update(_checked(metadata))

    def tag(self, policy: str, version: int, name: str) -> None:
        """Give a retained version a name, or move the name to it. Raises: UserError if it can be no name."""
        if name == LATEST or not re.fullmatch(r"[A-Za-z][\w.-]*", name, re.ASCII):
            raise UserError(f"'{name}' cannot be a tag: use letters, digits, '_', '-' and '.', not '{LATEST}'")
        entry = self._entry(policy)
        entry.tags[name] = self.resolve(policy, version)
        self._prune(entry)

    def untag(self, policy: str, name: str) -> None:
        self.resolve(policy, name)
        entry = self._entry(policy)
        entry.tags.pop(name, None)
        self._prune(entry)

    def pin(self, policy: str, version: int) -> None:
        """Retain a version until it was unpinned as often as pinned."""
        self.resolve(policy, version)
        pins = self._entry(policy).pins
        pins[version] = pins.get(version, 0) + 1

    def unpin(self, policy: str, version: int) -> None:
        """Raises: ValueError if it is not pinned."""
        entry = self._entry(policy)
        if version not in entry.pins:
            raise ValueError(f"version {version} of policy '{policy}' is not pinned")
        entry.pins[version] -= 1
        if not entry.pins[version]:
            del entry.pins[version]
            self._prune(entry)

    def _entry(self, policy: str) -> _Policy:
        if policy not in self._policies:
            raise unknown_name("policy", policy, self._policies)
        return self._policies[policy]

    def _prune(self, entry: _Policy) -> None:
        needed = {entry.latest, *entry.tags.values(), *entry.pins}
        unnamed = sorted(set(entry.params) - set(entry.tags.values()))
        for version in set(unnamed[: -self.keep]) - needed:
            del entry.params[version], entry.metadata[version]

    def snapshot(self) -> Tree:
        """A plain tree that shares the parameters. Raises: CheckpointError if parameters have other containers than
        dict, list and tuple."""
        return {
            name: {
                "latest": entry.latest,
                "versions": np.array(sorted(entry.params), np.int64),
                "params": [plain(entry.params[v], f"policy '{name}'") for v in sorted(entry.params)],
                "metadata": pack_json([entry.metadata[v] for v in sorted(entry.params)]),
                "tags": dict(entry.tags),
                "pins": np.array(sorted(entry.pins.items()), np.int64).reshape(-1, 2),
            }
            for name, entry in self._policies.items()
        }

    def restore(self, tree: Tree) -> None:
        """The inverse of `snapshot`; parameters may come back as NumPy arrays."""
        self._policies = {}
        for name, saved in tree.items():
            versions = saved["versions"].tolist()
            self._policies[name] = _Policy(
                latest=int(saved["latest"]),
                params=dict(zip(versions, saved["params"], strict=True)),
                metadata=dict(zip(versions, unpack_json(saved["metadata"]), strict=True)),
                tags={tag: int(version) for tag, version in saved["tags"].items()},
                pins={version: count for version, count in saved["pins"].tolist()},
            )


def _checked(metadata: Mapping[str, Any]) -> dict[str, Any]:
    copied: dict[str, Any] = unpack_json(pack_json(dict(metadata)))
    return copied


def _draw(policy: str, entry: _Policy, selector: Past) -> int:
    versions = sorted(entry.params)
    versions = [version for version in versions if version != entry.latest] or versions
    if selector.how == "recent":
        versions = versions[-selector.last :]
    elif selector.how == "best":
        score = {v: entry.metadata[v].get(selector.key) for v in versions}
        scored = [v for v in versions if score[v] is not None and score[v] == score[v]]  # a NaN is no score
        if not scored:
            known = {key for metadata in entry.metadata.values() for key in metadata}
            raise unknown_name(f"metadata key of the past versions of policy '{policy}'", selector.key, known)
        versions = sorted(scored, key=lambda v: (score[v], v))[-selector.last :]
    return int(np.random.default_rng(selector.seed).choice(versions))
