"""`marl init`: the beginning of a world or an algorithm, as a file that already works."""

from __future__ import annotations

import builtins
import importlib.util
import io
import keyword
import re
import sys
import tokenize
from importlib import resources
from pathlib import Path

from marl.core.errors import UserError
from marl.io.console import next_commands, say
from marl.io.files import write_text_atomic
from marl.runner.schema import valid_name

TEMPLATES = {"env": "my_world", "jax": "my_jax_world", "agent": "my_agent"}


def init(kind: str, name: str, *, jax: bool = False, folder: Path = Path()) -> int:
    """Write `NAME.py` and `NAME.yaml`: a PettingZoo world, with `jax` a world in JAX, or a learner.

    kind: `env` or `agent`.  Raises: UserError if the name is no name for a module and a class, or is taken.
    """
    if jax and kind != "env":
        raise UserError("--jax is for worlds, and every algorithm is in JAX; expected marl init env NAME --jax")
    template = TEMPLATES["jax" if jax else kind]
    class_name = _class_name(name)
    files = {}
    for ending in (".py", ".yaml"):
        text = resources.files("marl.runner.templates").joinpath(template + ending).read_text()
        files[folder / f"{name}{ending}"] = _renamed(text, template, name, class_name, ending)
    for path in files:
        if path.exists():
            raise UserError(f"{path} is there already, and nothing was written; expected another name")
    _expect_free(name)
    for path, text in files.items():
        write_text_atomic(path, text)
    python, experiment = files
    target = str(python) if kind == "env" and not jax else f"{name}:{class_name}"
    said = {"env": "a PettingZoo world", "jax": "a world in JAX", "agent": "a learner"}["jax" if jax else kind]
    say(f"{python}: {class_name}, {said}\n{experiment}: an experiment with it")
    next_commands([f"marl check {target}", f"marl train {experiment}"])
    return 0


def _camel(name: str) -> str:
    """`my_world` becomes `MyWorld`."""
    return "".join(part[:1].upper() + part[1:] for part in name.split("_"))


def _class_name(name: str) -> str:
    """Raises: UserError if no module, class and experiment can be called so."""
    made = _camel(name)
    if not name.isascii() or not name.isidentifier() or not made.isidentifier() or keyword.iskeyword(name):
        raise UserError(f"'{name}' is no name for a file to import; expected letters, digits and _, such as my_world")
    try:
        valid_name(name)
    except ValueError as error:
        raise UserError(f"'{name}' is no name for an experiment: {error}") from error
    return made


def _renamed(text: str, template: str, name: str, class_name: str, ending: str) -> str:
    """A template under another name. Raises: UserError if the new one means something else in it."""
    new = re.sub(rf"\b{template}\b", name, text.replace(_camel(template), class_name))
    taken = keyword.iskeyword(class_name) or hasattr(builtins, class_name)
    if ending == ".py" and (taken or len(_words(new)) < len(_words(text))):
        raise UserError(f"a class {class_name} would hide another one that the file needs; expected another name")
    return new


def _words(program: str) -> set[str]:
    """The names in a program, without those in strings and comments."""
    tokens = tokenize.generate_tokens(io.StringIO(program).readline)
    return {token.string for token in tokens if token.type == tokenize.NAME}


def _expect_free(name: str) -> None:
    """Raises: UserError if `import NAME` would find something else."""
    if name in sys.modules or importlib.util.find_spec(name) is not None:
        raise UserError(f"'{name}' is the name of a module that is installed here; expected another name")
