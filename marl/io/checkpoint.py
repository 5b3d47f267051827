"""Checkpoints: the whole state of a run in one folder, complete or absent, hashed, found again after any crash.

`<folder>/ckpt-<step>/` holds `arrays.bin` (see `marl.io.arrays`), `header.json` and, written last, `manifest.json`
(format version, tag, SHA-256 and size of each file, and a digest of itself). A checkpoint is written under a name
ending in `.tmp`, forced to disk and renamed; then the text file `latest` is replaced. So a kill at any moment leaves
the previous checkpoint as it was. A checkpoint found damaged is moved to `<folder>/quarantine/`, never deleted.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from marl.core.errors import CheckpointError, did_you_mean
from marl.io import arrays
from marl.io.arrays import FILE_NAME, FORMAT, Leaf, Tree, load_arrays, save_arrays
from marl.io.faults import fault_point
from marl.io.files import dumps, fsync_folder, loads, reason, replace_file
from marl.io.metrics import Event

__all__ = [
    "fill",
    "list_checkpoints",
    "load",
    "load_arrays",
    "load_plain",
    "newest_valid",
    "path_of",
    "prune",
    "read_header",
    "read_manifest",
    "save",
    "save_arrays",
    "step_of",
    "verify",
]

HEADER, MANIFEST, LATEST, QUARANTINE = "header.json", "manifest.json", "latest", "quarantine"
_NAME = re.compile(r"ckpt-(\d{12,})")


class NewerFormatError(CheckpointError):
    """The checkpoint is sound but of a format that this program does not read; it is left where it is."""


def save(folder: Path, step: int, tree: Tree, header: dict[str, Any], *, tag: str | None = None) -> Path:
    """Write the whole state as `<folder>/ckpt-<step>`, atomically, replacing one of the same step.

    tree: any pytree of arrays, typed PRNG keys and plain numbers.  header: JSON (counters, the metrics file's
    offset, ...). tag: a word that keeps `prune` from deleting it.  Returns the checkpoint's folder.

    Raises: CheckpointError with path and reason if it cannot be written (disk full, no permission); what was
    half-written is removed and earlier checkpoints are untouched.
    """
    leaves, structure = arrays.host_leaves(tree), arrays.structure_of(tree)
    final = path_of(folder, step)
    temporary = folder / f"{final.name}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _remove(temporary)
        temporary.mkdir()
        _write_parts(temporary, step, leaves, structure, header, tag)
        _put_in_place(temporary, final)
    except OSError as error:
        with contextlib.suppress(OSError):
            _remove(temporary)
        raise CheckpointError(f"cannot write checkpoint {final}: {reason(error)}") from error
    except TypeError as error:
        _remove(temporary)
        raise CheckpointError(f"cannot write checkpoint {final}: its header is not JSON ({error})") from error
    try:
        fault_point("checkpoint.latest")
        replace_file(folder / LATEST, f"{final.name}\n".encode())
    except OSError as error:
        raise CheckpointError(
            f"checkpoint {final} is written, but {folder / LATEST} is not: {reason(error)}"
        ) from error
    return final


def _write_parts(
    temporary: Path, step: int, leaves: list[Leaf], structure: object, header: dict[str, Any], tag: str | None
) -> None:
    sha256, size = arrays.write_file(temporary / FILE_NAME, leaves, structure, {}, "checkpoint.arrays")
    text = (dumps(header, indent=2) + "\n").encode()
    replace_file(temporary / HEADER, text)
    files = {
        FILE_NAME: {"sha256": sha256, "bytes": size},
        HEADER: {"sha256": hashlib.sha256(text).hexdigest(), "bytes": len(text)},
    }
    manifest: dict[str, Any] = {"format": FORMAT, "step": step, "tag": tag, "files": files}
    fault_point("checkpoint.manifest")
    replace_file(temporary / MANIFEST, dumps({**manifest, "sha256": arrays.json_digest(manifest)}, indent=2).encode())
    fsync_folder(temporary)


def _put_in_place(temporary: Path, final: Path) -> None:
    """Rename; a checkpoint of the same step steps aside first, and comes back in `_recover` if the program dies in
    between.
    """
    aside = final.with_name(f"{final.name}.replaced")
    fault_point("checkpoint.rename")
    if final.exists():
        _remove(aside)
        os.rename(final, aside)
    try:
        os.rename(temporary, final)
    except OSError:
        if aside.exists():
            os.rename(aside, final)
        raise
    fsync_folder(final.parent)
    _remove(aside)


def _remove(path: Path) -> None:
    """Delete a folder (or a file in its place) if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def list_checkpoints(folder: Path) -> list[Path]:
    """Every complete-looking checkpoint in `folder`, oldest step first. Empty if there is no such folder."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if _NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=step_of)


def path_of(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step is, or would be."""
    return folder / f"ckpt-{step:012d}"


def step_of(path: Path) -> int:
    """The step in a checkpoint's name. Raises: CheckpointError if the name is not that of a checkpoint."""
    match = _NAME.fullmatch(path.name)
    if match is None:
        raise CheckpointError(f"{path} is not a checkpoint: its name is not ckpt-<step>")
    return int(match[1])


def read_manifest(path: Path) -> dict[str, Any]:
    """A checkpoint's manifest, checked against its own digest.

    Raises: NewerFormatError if it is sound but of another format version; CheckpointError if it is missing or damaged.
    """
    manifest = path / MANIFEST
    try:
        content = loads(manifest.read_bytes())
        digest = content.pop("sha256")
    except OSError as error:
        raise CheckpointError(f"cannot read {manifest}: {reason(error)}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{manifest} is damaged: not a manifest") from error
    if digest != arrays.json_digest(content):
        raise CheckpointError(f"{manifest} is damaged: its digest does not match")
    try:
        arrays.check_version(path, content["format"])
    except CheckpointError as error:
        raise NewerFormatError(str(error)) from None
    found: dict[str, Any] = content
    return found


def verify(path: Path) -> dict[str, Any]:
    """Check size and SHA-256 of every file of a checkpoint and return its manifest.

    Raises: CheckpointError naming the first file that is missing, truncated or changed.
    """
    manifest = read_manifest(path)
    for name, expected in manifest["files"].items():
        file = path / name
        try:
            size = file.stat().st_size
            if size != expected["bytes"]:
                raise CheckpointError(f"{file} is damaged: {size} bytes instead of {expected['bytes']}")
            with open(file, "rb") as content:
                digest = hashlib.file_digest(content, "sha256").hexdigest()
        except OSError as error:
            raise CheckpointError(f"cannot read {file}: {reason(error)}") from error
        if digest != expected["sha256"]:
            raise CheckpointError(f"{file} is damaged: its SHA-256 does not match the manifest")
    return manifest


def read_header(path: Path) -> dict[str, Any]:
    """The header of a checkpoint, without its arrays. Raises: CheckpointError if it is missing or is not JSON."""
    try:
        header = loads((path / HEADER).read_bytes())
    except OSError as error:
        raise CheckpointError(f"cannot read {path / HEADER}: {reason(error)}") from error
    except ValueError as error:
        raise CheckpointError(f"{path / HEADER} is damaged: not JSON") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{path / HEADER} is damaged: not an object")
    return header


def load(path: Path, like: Tree) -> tuple[Tree, dict[str, Any]]:
    """The state saved in a checkpoint, in the shape of the template `like`, and the header.

    like: the pytree to fill; its leaves are arrays, `jax.ShapeDtypeStruct`s, typed keys or plain numbers. A leaf
    comes back on the template's devices where it is committed to them (or its struct names a sharding), else on the
    default device; where the template holds a NumPy array or a plain number, so does the result.

    Raises: CheckpointError if a file is damaged, or naming the first leaf that is missing, unknown, or of another
    shape or dtype.
    """
    verify(path)
    leaves, _, _ = arrays.read_file(path / FILE_NAME, verify=False)
    return fill(leaves, like, str(path)), read_header(path)


def load_plain(path: Path) -> tuple[Tree, dict[str, Any]]:
    """The state saved from a tree of dicts, lists and tuples, as NumPy arrays and numbers, and the header.

    Raises: CheckpointError if a file is damaged, or the state was saved from other containers (then use `load`).
    """
    verify(path)
    return load_arrays(path)[0], read_header(path)


def fill(leaves: list[Leaf], like: Tree, source: str) -> Tree:
    """The leaves of a file put into the template `like`; see `load`. `source` names the file in errors.

    Raises: CheckpointError naming the first leaf that is missing, unknown, or of another shape or dtype.
    """
    import jax

    stored = {leaf.path: leaf for leaf in leaves}
    flat, treedef = jax.tree_util.tree_flatten_with_path(like)
    wanted = [(jax.tree_util.keystr(path), template) for path, template in flat]
    names = {path for path, _ in wanted}
    missing = [path for path, _ in wanted if path not in stored]
    unknown = [path for path in stored if path not in names]
    if missing:
        raise CheckpointError(f"{source} has no leaf {missing[0]}{_more(missing)}{did_you_mean(missing[0], unknown)}")
    if unknown:
        raise CheckpointError(f"{source} has a leaf {unknown[0]} that this run does not have{_more(unknown)}")
    for path, template in wanted:
        _check(stored[path], template, source)
    return jax.tree_util.tree_unflatten(treedef, [_restore(stored[path], template) for path, template in wanted])


def _more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def _check(leaf: Leaf, template: Any, source: str) -> None:
    if isinstance(template, bool | int | float) and not hasattr(template, "dtype"):
        expected = (type(template).__name__, ())
        found = (leaf.note if leaf.kind == "python" else leaf.dtype, leaf.shape)
    else:
        expected = (str(template.dtype), tuple(template.shape))
        found = (f"python {leaf.note}" if leaf.kind == "python" else leaf.dtype, leaf.shape)
    if expected != found:
        raise CheckpointError(
            f"{source}: leaf {leaf.path} is {found[0]}{list(found[1])}, "
            f"but this run needs {expected[0]}{list(expected[1])}"
        )


def _restore(leaf: Leaf, template: Any) -> Any:
    """The stored leaf as the kind of thing that the template is.

    JAX gets a copy: the buffer of a donated array must be its own.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np

    if leaf.kind == "python":
        return leaf.data.item()
    if isinstance(template, np.ndarray | np.generic):
        return leaf.data.copy()
    sharding = getattr(template, "sharding", None)
    if isinstance(template, jax.Array) and not template.committed:
        sharding = None
    value = jnp.array(leaf.data, copy=True)
    if leaf.kind == "key":
        value = jax.random.wrap_key_data(value, impl=leaf.note)
    return value if sharding is None else jax.device_put(value, sharding)


def newest_valid(folder: Path, on_event: Callable[[Event], None], *, repair: bool = True) -> Path | None:
    """The newest checkpoint whose every byte is as written, or None.

    repair: the caller owns the run folder. Leftovers of a killed writer are removed, every damaged checkpoint that
    is passed over is moved to `quarantine/` and reported as an event, and the `latest` pointer is set right. False
    only reads, for a folder that a running program may be writing.

    Raises: NewerFormatError at a sound checkpoint of another format version; CheckpointError if repairing fails.
    """
    try:
        if repair:
            _recover(folder)
        for path in reversed(list_checkpoints(folder)):
            try:
                verify(path)
            except NewerFormatError:
                raise
            except CheckpointError as error:
                place = f"moved to {_quarantine(path)}" if repair else "passed over"
                on_event(Event("checkpoint_invalid", f"checkpoint {path.name} is not valid and was {place}: {error}"))
                continue
            if repair:
                _point_latest(folder, path)
            return path
    except OSError as error:
        raise CheckpointError(f"cannot repair {folder}: {reason(error)}") from error
    return None


def _recover(folder: Path) -> None:
    """Finish what a killed writer left: bring back a replaced checkpoint whose successor never came, remove
    leftovers.
    """
    if not folder.is_dir():
        return
    for path in sorted(folder.iterdir()):
        if path.suffix == ".replaced":
            home = path.with_suffix("")
            if home.exists():
                _remove(path)
            else:
                os.rename(path, home)
        elif path.suffix == ".tmp":
            _remove(path)


def _quarantine(path: Path) -> Path:
    """Move a checkpoint to the quarantine, under a name that is free there."""
    place = path.parent / QUARANTINE
    place.mkdir(exist_ok=True)
    target, number = place / path.name, 1
    while target.exists():
        number += 1
        target = place / f"{path.name}-{number}"
    os.rename(path, target)
    fsync_folder(path.parent)
    return target


def _point_latest(folder: Path, path: Path) -> None:
    pointer = folder / LATEST
    wanted = f"{path.name}\n".encode()
    if not pointer.is_file() or pointer.read_bytes() != wanted:
        replace_file(pointer, wanted)


def prune(folder: Path, keep: int, protect: Iterable[Path] = ()) -> list[Path]:
    """Delete all but the newest `keep` untagged checkpoints, and return what was deleted.

    Never deleted: the newest valid one, tagged ones, those in `protect` (the best, say), and any that cannot be read
    (they are the business of `newest_valid`).  Raises: CheckpointError if a deletion fails.
    """
    kept = {path.resolve() for path in protect}
    untagged = []
    for path in list_checkpoints(folder):
        try:
            tag = read_manifest(path)["tag"]
        except CheckpointError:
            continue
        if tag is None and path.resolve() not in kept:
            untagged.append(path)
    doomed = untagged[: max(0, len(untagged) - keep)]
    if not doomed:
        return []
    newest = newest_valid(folder, lambda event: None, repair=False)
    doomed = [path for path in doomed if path != newest]
    try:
        for path in doomed:
            # Renamed first: a deletion cut short leaves a leftover, not a damaged checkpoint.
            gone = path.with_name(f"{path.name}.tmp")
            os.rename(path, gone)
            _remove(gone)
    except OSError as error:
        raise CheckpointError(f"cannot remove an old checkpoint in {folder}: {reason(error)}") from error
    return doomed
