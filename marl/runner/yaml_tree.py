"""A strict reader of small YAML files that remembers the line of every key.

It builds plain values from the parser's events, so no tag can name a Python type. Numbers follow YAML 1.2, not 1.1:
`3e-4` is a number, `on` and `1:30` are text. Bounds on size, depth and aliases keep a hostile file cheap.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator
from typing import Any, TypeAlias

import yaml

from marl.core.errors import ConfigError

MAX_BYTES = 2**20
MAX_NODES = 20_000
MAX_DEPTH = 32
MAX_DIGITS = 40
COMMAND_LINE = "command line"

Scalar: TypeAlias = str | int | float | bool | None
Path: TypeAlias = tuple[str | int, ...]

_DIGITS = r"\d+(?:_\d+)*"
_INT = re.compile(rf"[-+]?{_DIGITS}")
_FLOAT = re.compile(rf"[-+]?(?:{_DIGITS}(?:\.(?:{_DIGITS})?)?|\.{_DIGITS})(?P<exponent>[eE][-+]?\d+)?")
_WORDS: dict[str, Scalar] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys((".inf", "+.inf", ".Inf", ".INF"), math.inf),
    **dict.fromkeys(("-.inf", "-.Inf", "-.INF"), -math.inf),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), math.nan),
}


@dataclasses.dataclass(frozen=True)
class Node:
    """A value and where it was written. `size` counts the nodes below it, aliases written out."""

    value: Scalar | dict[str, Node] | list[Node]
    line: int
    origin: str
    size: int = 1

    @property
    def place(self) -> str:
        """`file:line`, or `command line`."""
        return f"{self.origin}:{self.line}" if self.line else self.origin

    def plain(self) -> Any:
        """The value without places: dicts, lists and scalars."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain() for node in self.value]
        return self.value

    def child(self, key: str | int) -> Node | None:
        """The node under a key or an index, if there is one."""
        if isinstance(self.value, dict):
            return self.value.get(str(key))
        if isinstance(self.value, list) and str(key).isdecimal() and int(key) < len(self.value):
            return self.value[int(key)]
        return None

    def nearest(self, path: Path) -> Node:
        """The deepest node on a path; a key that is not there is looked for no further."""
        node = self
        for key in path:
            below = node.child(key)
            if below is None:
                break
            node = below
        return node


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a config came from. All sources compare equal: the place of a key is no part of what it says."""

    root: Node | None = dataclasses.field(default=None, compare=False)

    def error(self, path: Path, text: str) -> ConfigError:
        """An error about the key at `path`, with its place in front."""
        parts = [dotted(path), text]
        if self.root is not None:
            parts.insert(0, self.root.nearest(path).place)
        return ConfigError(": ".join(part for part in parts if part))


def dotted(path: Path) -> str:
    """A path as a message shows it: `stop.env_steps`; a key that can be no key is cut short."""
    return ".".join(word if len(word) <= 60 else f"{word[:57]}..." for word in map(str, path))


def parse_scalar(text: str) -> Scalar:
    """The value of an unquoted word. An exponent that leaves a whole number gives an int: `2e6` is 2000000.

    Raises: ValueError for an integer too long to be meant.
    """
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text):
        if len(text) > MAX_DIGITS:
            raise ValueError(f"a number of {len(text)} digits is too long")
        return int(text)
    match = _FLOAT.fullmatch(text)
    if not match:
        return text
    number = float(text)
    return int(number) if match["exponent"] and abs(number) < 2**53 and number.is_integer() else number


def parse_yaml(text: str, origin: str, *, first_line: int = 1) -> Node | None:
    """The tree that one YAML document holds; None if it holds nothing. `first_line` 0: lines are not counted.

    Raises: ConfigError with place and cause: bad syntax, a key given twice, a tag, more than one document, too many
    nodes, too deep, an alias that holds itself.
    """
    return _Builder(text, origin, first_line).document()


class _Builder:
    def __init__(self, text: str, origin: str, first_line: int) -> None:
        self.events = self._guarded(text)
        self.origin = origin
        self.first_line = first_line
        self.nodes = 0
        self.anchors: dict[str, Node | None] = {}  # None: still being built

    def document(self) -> Node | None:
        next(self.events)
        event = next(self.events)
        if isinstance(event, yaml.StreamEndEvent):
            return None
        root = self.node(next(self.events), 0)
        next(self.events)
        event = next(self.events)
        if not isinstance(event, yaml.StreamEndEvent):
            raise self.error(event, "a second YAML document begins here; expected one document")
        return root

    def node(self, event: Any, depth: int) -> Node:
        if depth > MAX_DEPTH:
            raise self.error(event, f"nested more than {MAX_DEPTH} levels deep")
        if isinstance(event, yaml.AliasEvent):
            return self.alias(event)
        if event.tag not in (None, "!", "tag:yaml.org,2002:str"):
            raise self.error(event, f"tag '{event.tag}' is not allowed; expected a plain value")
        self.count(event, 1)
        if event.anchor:
            self.anchors[event.anchor] = None
        if isinstance(event, yaml.ScalarEvent):
            node = Node(self.scalar(event), self.line(event), self.origin)
        elif isinstance(event, yaml.SequenceStartEvent):
            items = [self.node(item, depth + 1) for item in self.until(yaml.SequenceEndEvent)]
            node = Node(items, self.line(event), self.origin, 1 + sum(item.size for item in items))
        else:
            node = self.mapping(event, depth)
        if event.anchor:
            self.anchors[event.anchor] = node
        return node

    def mapping(self, event: Any, depth: int) -> Node:
        entries: dict[str, Node] = {}
        for key in self.until(yaml.MappingEndEvent):
            if not isinstance(key, yaml.ScalarEvent):
                raise self.error(key, "a key is a list, a mapping or an alias; expected a word")
            if key.value in entries:
                first = entries[key.value].place
                raise self.error(key, f"{key.value}: key given twice (first at {first}); expected it once")
            value = self.node(next(self.events), depth + 1)
            entries[key.value] = dataclasses.replace(value, line=self.line(key))
        return Node(entries, self.line(event), self.origin, 1 + sum(node.size for node in entries.values()))

    def alias(self, event: Any) -> Node:
        if event.anchor not in self.anchors:
            raise self.error(event, f"alias '*{event.anchor}' has no anchor '&{event.anchor}' before it")
        target = self.anchors[event.anchor]
        if target is None:
            raise self.error(event, f"alias '*{event.anchor}' stands inside its own anchor; expected no recursion")
        self.count(event, target.size)
        return target

    def scalar(self, event: Any) -> Scalar:
        if event.tag is not None or not event.implicit[0]:
            return str(event.value)
        try:
            return parse_scalar(event.value)
        except ValueError as error:
            raise self.error(event, str(error)) from None

    def until(self, end: type) -> Iterator[Any]:
        for event in self.events:
            if isinstance(event, end):
                return
            yield event

    def count(self, event: Any, size: int) -> None:
        self.nodes += size
        if self.nodes > MAX_NODES:
            raise self.error(event, f"more than {MAX_NODES} values, aliases written out; expected a small file")

    def line(self, event: Any) -> int:
        return event.start_mark.line + self.first_line if self.first_line else 0

    def error(self, event: Any, text: str) -> ConfigError:
        return ConfigError(f"{Node(None, self.line(event), self.origin).place}: {text}")

    def _guarded(self, text: str) -> Iterator[Any]:
        try:
            yield from yaml.parse(text, Loader=yaml.SafeLoader)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line = mark.line + self.first_line if mark and self.first_line else 0
            hint = " (indent with spaces, not tabs)" if "'\\t'" in str(error.problem) else ""
            place = Node(None, line, self.origin).place
            context = f" {error.context}" if error.context else ""
            raise ConfigError(f"{place}: not valid YAML{context}: {error.problem}{hint}") from None
        except yaml.YAMLError as error:
            cause = getattr(error, "reason", "cannot be read")
            raise ConfigError(f"{self.origin}: not valid YAML: {cause}; expected a text file") from None
