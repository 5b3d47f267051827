"""A pydantic error as one sentence: the key, what was given, what was expected, the nearest valid name."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ValidationError

from marl.core.errors import ConfigError, did_you_mean
from marl.runner.yaml_tree import Path, Source, dotted

Model = TypeVar("Model", bound=BaseModel)

LISTED = 16  # names in one message

_EXPECTED = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text (put it in quotes)",
    "string": "text (put it in quotes if it looks like a number)",
    "finite_number": "a finite number",
    "list": "a list",
    "tuple": "a list",
    "dict": "a mapping of keys to values",
    "model": "a mapping of keys to values",
}
_BOUNDS = {
    "greater_than_equal": ("ge", "at least"),
    "greater_than": ("gt", "more than"),
    "less_than_equal": ("le", "at most"),
    "less_than": ("lt", "less than"),
}


def validate(model: type[Model], data: Mapping[str, Any], source: Source, prefix: Path = ()) -> Model:
    """`data` as a `model`, without pydantic's leniency: no text for numbers, no 1 for true. `prefix` is its place.

    Raises: ConfigError about the first wrong key; it names the other wrong keys too.
    """
    try:
        made = model.model_validate(data)
    except ValidationError as error:
        raise explain(error, model, data, source, prefix) from None
    for path, given, value in _leaves(made, data):
        kinds = [
            next((kind for kind in (bool, int, float, str) if isinstance(leaf, kind)), None) for leaf in (given, value)
        ]
        if kinds[0] is not kinds[1] and (bool in kinds or str in kinds) and None not in kinds:
            expected = _EXPECTED[value.__class__.__name__]
            raise source.error((*prefix, *path), f"{show(given)} is not allowed; expected {expected}")
    return made


def _leaves(made: Any, data: Any, path: Path = ()) -> Iterator[tuple[Path, Any, Any]]:
    """Every scalar that was given, beside what it became; not those that a field's own validator reads."""
    if isinstance(made, BaseModel) and isinstance(data, dict):
        for key, field in _keys(type(made)).items():
            if key in data and not any(isinstance(entry, BeforeValidator) for entry in field.metadata):
                yield from _leaves(getattr(made, field.name, None), data[key], (*path, key))
    elif isinstance(made, dict) and isinstance(data, dict):
        for key in data.keys() & made.keys():
            yield from _leaves(made[key], data[key], (*path, key))
    elif isinstance(made, (list, tuple)) and isinstance(data, list):
        for index, (value, given) in enumerate(zip(made, data, strict=False)):
            yield from _leaves(value, given, (*path, index))
    elif path:
        yield path, data, made


def explain(
    error: ValidationError, model: type[BaseModel], data: Mapping[str, Any], source: Source, prefix: Path = ()
) -> ConfigError:
    """The ConfigError for what pydantic found in `data`. Misspelt keys come first: they cause the other errors."""
    by_path: dict[Path, list[Any]] = {}
    for item in error.errors(include_url=False):
        by_path.setdefault(_path(item, data), []).append(item)
    rank = {"unavailable": 0, "extra_forbidden": 1}
    ranks = {path: min(rank.get(item["type"], 2) for item in items) for path, items in by_path.items()}
    first = min(by_path, key=lambda path: ranks[path])
    text = _sentence(by_path[first], first, model, data)
    if ranks[first]:
        others = [path for path in by_path if path != first and _own_fault(by_path[path], ranks[first])]
        names = ", ".join(dotted((*prefix, *path)) for path in others[:LISTED])
        text += f" (also wrong: {names})" if names else ""
    return source.error((*prefix, *first), text)


def _own_fault(items: list[Any], rank: int) -> bool:
    """Whether an error would stand without the misspelt key that was found before it."""
    return rank > 1 or items[0]["type"] not in ("missing", "value_error")


def show(value: object) -> str:
    """A value as a message shows it: short, in the file's words."""
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, (list, tuple)):
        return "a list" if value else "an empty list"
    text = {"None": "nothing", "True": "true", "False": "false"}.get(str(value), repr(value))
    return text if len(text) <= 60 else f"{text[:57]}..."


def expected_one(name: str, known: Sequence[str]) -> str:
    """`expected one of a, b, c; did you mean 'b'?`; a long list is left out where the nearest name is clear."""
    near = did_you_mean(name, known)
    listed = f"{len(known)} names" if near and len(known) > LISTED else ", ".join(known)
    return f"expected one of {listed}{near}"


def _path(item: Any, data: Any) -> Path:
    """pydantic's location without the tags of unions and validators, which are not keys of the file."""
    path: list[str | int] = []
    for piece in item["loc"]:
        below = data.get(piece, _NOTHING) if isinstance(data, dict) else _NOTHING
        if isinstance(data, list) and isinstance(piece, int) and piece < len(data):
            below = data[piece]
        if below is not _NOTHING:
            path.append(piece)
            data = below
    if item["type"] == "missing":
        path.append(item["loc"][-1])
    return tuple(path)


_NOTHING = object()


def _sentence(items: list[Any], path: Path, model: type[BaseModel], data: Any) -> str:
    item = items[0]
    names, descriptions = _fields(model, path[:-1])
    if item["type"] == "extra_forbidden":
        kind = next((piece for piece in item["loc"] if piece not in path), None)  # the tag of a union
        if kind is not None and path[-1] in names:
            return f"unknown key of kind {kind}; another kind has it"
        return f"unknown key; {expected_one(str(path[-1]), names)}"
    if item["type"] == "missing":
        for key in path[:-1]:
            data = data[key]
        given = next((key for key in data if key not in names and did_you_mean(key, [str(path[-1])])), "")
        description = descriptions.get(str(path[-1]), "")
        text = f"required key is missing; expected {description}" if description else "required key is missing"
        return f"{text}; there is '{given}': did you mean '{path[-1]}'?" if given else text
    own = [entry for entry in items if entry["type"] in ("value_error", "unavailable")]
    if own:
        text = str(own[0].get("ctx", {}).get("error", own[0]["msg"]))
        return text if isinstance(item["input"], (dict, list)) else f"{show(item['input'])}: {text}"
    literals = [word for entry in items for word in _literals(entry)]
    expected = " or ".join(dict.fromkeys(_expectation(entry) for entry in items))
    near = did_you_mean(item["input"], literals) if isinstance(item["input"], str) else ""
    return f"{show(item['input'])} is not allowed; expected {expected}{near}"


def _expectation(item: Any) -> str:
    kind = item["type"]
    context = item.get("ctx", {})
    if kind in _BOUNDS:
        key, words = _BOUNDS[kind]
        return f"{words} {context[key]}"
    if kind == "literal_error":
        return f"{context['expected']}"
    if kind == "too_short":
        return f"at least {context['min_length']} of them"
    if kind == "too_long":
        return f"at most {context['max_length']} of them"
    for word in (kind, kind.split("_")[0]):
        if word in _EXPECTED:
            return _EXPECTED[word]
    message = str(item["msg"])
    return message.removeprefix("Input should be ").removeprefix("Input should ")


def _literals(item: Any) -> list[str]:
    if item["type"] != "literal_error":
        return []
    return [word.strip().strip("'") for word in item["ctx"]["expected"].replace(" or ", ",").split(",")]


def _fields(model: type[BaseModel], path: Path) -> tuple[list[str], dict[str, str]]:
    """Key names (and their descriptions) of the model that stands at `path` below `model`."""
    here: list[type[BaseModel]] = [model]
    for piece in path:
        below = [field for cls in here for key, field in _keys(cls).items() if key == piece]
        if below:
            here = [cls for field in below for cls in _models(field.annotation)]
    names = {key: field.description for cls in here for key, field in _keys(cls).items()}
    return list(names), names


@dataclasses.dataclass(frozen=True)
class _Field:
    name: str
    description: str
    annotation: Any
    metadata: tuple[Any, ...]


def _keys(model: type[BaseModel]) -> dict[str, _Field]:
    """The fields of a model by the key that a file uses."""
    return {
        field.alias or name: _Field(name, field.description or "", field.annotation, tuple(field.metadata))
        for name, field in model.model_fields.items()
    }


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        yield annotation
    for part in typing.get_args(annotation):
        yield from _models(part)
