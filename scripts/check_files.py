"""For pre-commit: every YAML file among the arguments can be read, and no file is larger than it should be."""

from __future__ import annotations

import sys
from pathlib import Path

import yaml

MAX_BYTES = 2_000_000


def problem(path: Path) -> str | None:
    """What is wrong with one file, or None."""
    size = path.stat().st_size
    if size > MAX_BYTES:
        return f"{size} bytes; the limit is {MAX_BYTES}"
    if path.suffix in (".yaml", ".yml"):
        try:
            yaml.safe_load(path.read_text())
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            return " ".join(str(error).split())
    return None


def main() -> int:
    found = {name: problem(Path(name)) for name in sys.argv[1:] if not Path(name).is_symlink()}
    for name, what in found.items():
        if what is not None:
            sys.stderr.write(f"{name}: {what}\n")
    return int(any(found.values()))


if __name__ == "__main__":
    sys.exit(main())
