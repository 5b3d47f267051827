"""Makes or mends one virtual environment of a checkout. Called by scripts/setup.sh when its stamp does not fit.

Standard library only, because it runs before anything is installed. One set-up at a time: an advisory lock that the
kernel drops when its holder dies, so a lock is never left behind. The stamp is removed first and written last, so an
interrupted set-up is never taken for a finished one.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

SUPPORTED = ("3.11", "3.12")
OFFLINE = ("NewConnectionError", "NameResolutionError", "ConnectTimeoutError", "ReadTimeoutError", "ProxyError")
NOTICE_EVERY_S = 20.0


class SetupError(Exception):
    """One clear line for the user, and the exit code: 2 where they have to do something, 1 where installing failed."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


def say(message: str) -> None:
    sys.stderr.write(f"marl: {message}\n")
    sys.stderr.flush()


@contextlib.contextmanager
def locked(path: Path) -> Iterator[int]:
    """Hold the set-up lock; yields its file descriptor. Says one line while it waits for somebody else's."""
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            say(f"another set-up is under way (process {file.read().strip() or 'unknown'}); waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        file.truncate()
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield file.fileno()


def installed_from(pyproject: Path) -> object:
    """The parts of pyproject.toml that an installation depends on."""
    parsed = tomllib.loads(pyproject.read_text())
    return parsed.get("build-system"), parsed.get("project"), parsed.get("tool", {}).get("hatch")


def constraints_of(root: Path, major: int | str, minor: int | str) -> Path:
    return root / "constraints" / f"py{major}{minor}.txt"


def environment_version(venv: Path) -> str | None:
    """`3.11` for a working environment, None for one that is missing or broken."""
    python = venv / "bin" / "python"
    if not os.access(python, os.X_OK):
        return None
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    answer = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=False)
    return answer.stdout.strip() or None


def make_environment(venv: Path, python: str) -> None:
    """Make the environment anew. Two marks come first: that it is ours to remake, and that it is not finished."""
    version = ".".join(map(str, sys.version_info[:3]))
    say(f"setting up {venv.name} with Python {version} (first start: some minutes and about 2 GB)")
    if venv.exists():
        shutil.rmtree(venv)
    (venv / ".marl").mkdir(parents=True)
    for mark in ("created", "installing"):
        (venv / ".marl" / mark).touch()
    made = subprocess.run([python, "-m", "venv", str(venv)], capture_output=True, text=True, check=False)
    if made.returncode != 0:
        output = made.stdout + made.stderr
        if "ensurepip" in output or "No module named" in output:
            minor = ".".join(map(str, sys.version_info[:2]))
            raise SetupError(
                f"{python} has no venv module; install it (Debian, Ubuntu: apt install python{minor}-venv) "
                "or name another Python 3.11 or 3.12: MARL_PYTHON=/path/to/python",
                2,
            )
        raise SetupError(f"cannot make {venv}: {last_line(output)}", 1)


def last_line(text: str, *prefixes: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip().startswith(prefixes or "")]
    return lines[-1] if lines else "no message"


def progress(log_path: Path) -> str:
    """What pip is doing, in a few words."""
    text = log_path.read_text(errors="replace")
    line = last_line(text, "Collecting", "Downloading", "Building", "Installing", "Preparing")
    return line if len(line) <= 70 else f"{line[:67]}..."


def install(venv: Path, root: Path, extras: str, constraints: Path, lock: int) -> None:
    """pip install -e ROOT[extras] under the constraints; pip's output goes to a log whose path is shown on failure.

    pip inherits the lock, so that it holds for a pip that outlives a killed set-up.
    """
    log_path = venv / "setup.log"
    target = f"{root}[{extras}]" if extras else str(root)
    command = [str(venv / "bin" / "python"), "-m", "pip", "install", "--no-input", "--disable-pip-version-check"]
    command += ["-c", str(constraints), "-e", target]
    environment = {"PIP_RETRIES": "2", **os.environ, "PIP_USER": "0", "PIP_NO_COLOR": "1"}
    with log_path.open("w") as log:
        pip = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, cwd=root, env=environment, pass_fds=(lock,)
        )
        began = time.monotonic()
        try:
            while True:
                try:
                    code = pip.wait(timeout=NOTICE_EVERY_S)
                    break
                except subprocess.TimeoutExpired:
                    say(f"installing, {time.monotonic() - began:.0f} s: {progress(log_path)}")
        except KeyboardInterrupt:
            pip.terminate()
            pip.wait()
            raise
    if code != 0:
        text = log_path.read_text(errors="replace")
        error = last_line(text, "ERROR:").removeprefix("ERROR:").strip()
        if any(word in text for word in OFFLINE):
            raise SetupError(
                "the package registry cannot be reached; check the network, or the registry that pip is configured "
                f"for, and start again; pip's log: {log_path}",
                1,
            )
        raise SetupError(f"installing failed (pip: {error}); pip's log: {log_path}", 1)


def write_stamp(venv: Path, kind: str, root: Path, constraints: Path, pyproject: bytes) -> None:
    """Copies of what decided the installation, moved into place in one step."""
    marks = venv / ".marl"
    new = marks / f"{kind}.new"
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    (new / "about").write_text(f"{root}\n{constraints.name}\n")
    (new / "pyproject.toml").write_bytes(pyproject)
    shutil.copyfile(constraints, new / "constraints.txt")
    shutil.rmtree(marks / kind, ignore_errors=True)
    new.rename(marks / kind)


def stamp_fits(venv: Path, kind: str, root: Path, constraints: Path) -> tuple[bool, bool]:
    """Whether the stamp allows the environment as it is, and whether it is right to the byte."""
    stamp = venv / ".marl" / kind
    try:
        same = (stamp / "about").read_text() == f"{root}\n{constraints.name}\n"
        same = same and (stamp / "constraints.txt").read_bytes() == constraints.read_bytes()
        same = same and os.access(venv / "bin" / "marl", os.X_OK)
        exact = (stamp / "pyproject.toml").read_bytes() == (root / "pyproject.toml").read_bytes()
        return same and installed_from(stamp / "pyproject.toml") == installed_from(root / "pyproject.toml"), exact
    except (OSError, tomllib.TOMLDecodeError):
        return False, False


def set_up(root: Path, folder: str, kind: str, extras: str, python: str) -> None:
    venv = root / folder
    marks = venv / ".marl"
    wanted = ".".join(map(str, sys.version_info[:2]))
    with locked(root / f"{folder}.lock") as lock:
        ours = (marks / "created").exists()
        version = environment_version(venv)
        if version is not None and version != wanted and "MARL_PYTHON" not in os.environ and version in SUPPORTED:
            wanted = version  # keep the environment that is there, whatever `python3` has become
        constraints = constraints_of(root, *wanted.split("."))
        pyproject = (root / "pyproject.toml").read_bytes()

        fits, exact = stamp_fits(venv, kind, root, constraints)
        if version == wanted and fits:
            if not exact:
                say("pyproject.toml changed, but nothing that is installed from it: the environment stays")
                write_stamp(venv, kind, root, constraints, pyproject)
            return  # another set-up may have done it while this one waited

        moved = ours and any(about.read_text().split("\n")[0] != str(root) for about in marks.glob("*/about"))
        broken = version != wanted or moved or (marks / "installing").exists()
        if venv.exists() and broken and not ours and any(venv.iterdir()):
            raise SetupError(
                f"{venv} was not made by scripts/marl and is {f'Python {version}' if version else 'broken'}; "
                "move it away and start again",
                2,
            )
        if not venv.exists() or broken:
            if (marks / "installing").exists():
                say("the last set-up did not finish; starting it anew")
            make_environment(venv, python)
            constraints = constraints_of(root, *sys.version_info[:2])
        else:
            say(f"setting up {venv.name}: {reason(marks / kind, root, constraints)}")
        marks.mkdir(exist_ok=True)
        for stamp in marks.glob("*/about"):
            shutil.rmtree(stamp.parent)  # every stamp goes first: what is being changed is not ready
        if (marks / "created").exists():
            (marks / "installing").touch()
        try:
            install(venv, root, extras, constraints, lock)
        except SetupError:
            (marks / "installing").unlink(missing_ok=True)  # pip gave up in good order: nothing is half-written
            raise
        for each in {"base", kind}:
            write_stamp(venv, each, root, constraints, pyproject)
        (marks / "installing").unlink(missing_ok=True)
        say(f"{venv.name} is ready")


def reason(stamp: Path, root: Path, constraints: Path) -> str:
    """Why an environment that exists is set up again."""
    if not (stamp / "about").exists():
        return f"what '{stamp.name}' needs is not installed yet"
    if (stamp / "constraints.txt").read_bytes() != constraints.read_bytes():
        return f"constraints/{constraints.name} changed"
    if (stamp / "pyproject.toml").read_bytes() != (root / "pyproject.toml").read_bytes():
        return "pyproject.toml changed"
    return "it is not complete"


def interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("root", "folder", "kind", "extras", "python"):
        parser.add_argument(f"--{name}", required=True)
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, interrupt)
    try:
        set_up(Path(arguments.root), arguments.folder, arguments.kind, arguments.extras, arguments.python)
    except SetupError as error:
        say(str(error))
        return error.code
    except KeyboardInterrupt:
        say("set-up interrupted; the next start goes on with it")
        return 130
    except OSError as error:
        say(f"cannot set up {arguments.root}/{arguments.folder}: {error.strerror} ({error.filename})")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
