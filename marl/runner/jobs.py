"""`marl submit`: an experiment as a job on a Ray cluster, its output here, its run folder brought back.

Everything goes over the one authenticated port of the dashboard: the job through Ray's job client, the run folder as a
log file (Ray's jobs have no download, and its log service hands out any file of a node's log folder unchanged).
Nothing that comes back is ever executed or unpickled: it is text, JSON and an archive of plain files.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import hashlib
import http.client
import importlib.metadata
import importlib.util
import json
import logging
import os
import secrets
import shlex
import shutil
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from marl.core.errors import MarlError, RunError, UserError
from marl.io.console import next_commands, say
from marl.io.files import write_failure
from marl.runner.cluster_http import auth_headers, check_head, dashboard_url, open_url
from marl.runner.job_entry import FACTS, archive_name
from marl.runner.job_follow import Follower

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

STOP_WAIT_S = 120  # what a job has for its last checkpoint once it is asked to stop; Ray's own default is 3
REMOTE_DIR = "~/marl-runs"
CODE_MAX_BYTES = 64 << 20
DOWNLOAD_TIMEOUT_S = 3600
_EXIT_CODES = (0, 1, 2, 130)


@dataclasses.dataclass(frozen=True)
class JobOptions:
    """How a job is run and what comes back.

    remote_dir: on the cluster, where the job's folder is made.  checkpoints: bring them too.  code: ship the packages
    `marl`, `envs`, `agents` and `experiments` of this machine.  extra: further files or folders to ship (worlds of
    one's own).  cpus, gpus: what the runner itself takes on its node; actors of `dataflow.kind: ray` come on top.
    """

    remote_dir: str = REMOTE_DIR
    checkpoints: bool = False
    fetch: bool = True
    wait: bool = True
    stop_wait_s: int = STOP_WAIT_S
    code: bool = False
    extra: tuple[str, ...] = ()
    python: str = "python"
    cpus: float = 0.0
    gpus: float = 0.0


def options_from(args: argparse.Namespace) -> JobOptions:
    """The options that `marl submit` and `marl sweep` share, as they were given."""
    return JobOptions(
        remote_dir=args.remote_dir,
        checkpoints=args.checkpoints,
        fetch=not args.no_fetch,
        wait=not args.no_wait,
        stop_wait_s=args.stop_wait,
        code=args.with_code,
        extra=tuple(args.extra),
        python=args.python,
        cpus=args.cpus,
        gpus=args.gpus,
    )


class Cluster:
    """A Ray head that was reached, and what may be asked of it.

    Raises (on creation): UserError for a wrong address, a dead head, a token that is missing or refused, a version that
    does not fit, or an installation without `ray[default]`.
    """

    def __init__(self, address: str) -> None:
        self.url = dashboard_url(address)
        self._headers = auth_headers()
        self.version = check_head(self.url, self._headers)
        missing = [name for name in ("ray", "aiohttp", "requests") if importlib.util.find_spec(name) is None]
        if missing:
            raise UserError(f"jobs need ray[default], and {', '.join(missing)} is missing: pip install 'ray[default]'")
        ours = importlib.metadata.version("ray")
        if ours != self.version:
            say(f"note: Ray is {self.version} on the cluster and {ours} here")
        self.client = self._connect()

    def _connect(self) -> JobSubmissionClient:
        # Ray lets these two variables win over any address that is given.
        hidden = {
            name: os.environ.pop(name) for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS") if name in os.environ
        }
        try:
            from ray.job_submission import JobSubmissionClient

            for name in (
                "ray.dashboard.modules.dashboard_sdk",
                "ray.dashboard.modules.job.sdk",
                "ray._private.runtime_env",
            ):
                logging.getLogger(name).setLevel(logging.ERROR)
            with self.told():
                return JobSubmissionClient(self.url, headers=dict(self._headers))
        finally:
            os.environ.update(hidden)

    @contextlib.contextmanager
    def told(self) -> Iterator[None]:
        """What Ray's client raises, as one line. Raises: UserError for an unknown job, RunError for the rest."""
        from ray.exceptions import RayError

        try:  # the errors of requests are OSErrors
            yield
        except (RuntimeError, OSError, ValueError, http.client.HTTPException, RayError) as error:
            text = " ".join(str(error).split())[:300]
            if "does not exist" in text or "status code 404" in text:
                raise UserError(
                    f"{self.url} knows no such job; its jobs: marl submit --address {self.url} --status all"
                ) from None
            raise RunError(f"{self.url}: {text or type(error).__name__}") from None

    def log_file(self, job: str, name: str, lines: int) -> Any:
        """The last lines of a file (-1: all of it) in the log folder of the node that a job ran on.

        Raises: RunError if there is none.
        """
        node = self.client.get_job_info(job).driver_node_id
        if node is None:
            raise RunError(f"{self.url}: job {job} never began")
        query = {"node_id": node, "filename": name, "lines": str(lines), "timeout": str(DOWNLOAD_TIMEOUT_S)}
        return open_url(self.url, "/api/v0/logs/file", self._headers, query, timeout=60.0)

    def facts(self, job: str) -> dict[str, Any]:
        """What a job that ended said about its folder; empty if it never came to that."""
        with contextlib.suppress(OSError, MarlError), self.told():
            with self.log_file(job, f"job-driver-{job}.log", 50) as answer:
                lines = answer.read(4 << 20).decode(errors="replace").splitlines()
            for line in reversed(lines):
                if line.startswith(FACTS):
                    found = json.loads(line.removeprefix(FACTS))
                    return found if isinstance(found, dict) else {}
        return {}


def submit(
    address: str, command: str, config_yaml: str, name: str, arguments: Sequence[str], options: JobOptions, into: Path
) -> int:
    """Run `marl COMMAND` (`train` or `sweep`) of a config as a job; follow it, fetch what it wrote into a folder.

    arguments: those of the command after the config.  Returns the exit code: the job's own, 1 if it has none, 130 if it
    was stopped.
    Raises: UserError as `Cluster`; RunError if the cluster fails.
    """
    cluster = Cluster(address)
    job = f"marl-{name}-{secrets.token_hex(4)}"
    entry = [options.python, "-m", "marl.runner.job_entry", "--job", job, "--dir", options.remote_dir]
    entry += ["--checkpoints"] * options.checkpoints + [command, "config.yaml", *arguments]
    with tempfile.TemporaryDirectory(prefix="marl-job-") as working_dir, cluster.told():
        _fill(Path(working_dir), config_yaml, options)
        cluster.client.submit_job(
            entrypoint=f"exec {shlex.join(entry)}",
            submission_id=job,
            runtime_env={
                "working_dir": working_dir,
                "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(options.stop_wait_s)},
            },
            metadata={"job_name": name, "command": f"marl {command}"},
            entrypoint_num_cpus=options.cpus or None,
            entrypoint_num_gpus=options.gpus or None,
        )
    say(f"job {job} on {cluster.url} (Ray {cluster.version}); Ctrl-C stops it with a checkpoint")
    if not options.wait:
        next_commands([_again(cluster, "--status", job), _again(cluster, "--fetch", job)])
        return 0
    return follow(cluster, job, into, fetch_too=options.fetch, stop_wait_s=options.stop_wait_s)


def follow(cluster: Cluster, job: str, into: Path, *, fetch_too: bool, stop_wait_s: int = STOP_WAIT_S) -> int:
    """Show a job's output until it ends, fetch its folder, and return its exit code."""
    with cluster.told():
        left = not asyncio.run(Follower(cluster.client, job, stop_wait_s).run())
        status, code, message = _state(cluster, job)
    if left:
        say(f"left job {job}: {status.lower()}")
        next_commands([_again(cluster, "--status", job), _again(cluster, "--fetch", job)])
        return 130
    if status != "SUCCEEDED":
        say(f"job {job}: {status.lower()}" + (f" with exit code {code}" if code is not None else f"; {message}"))
    if fetch_too:
        fetch(cluster, job, into)
    if status == "STOPPED":
        return 130
    if status == "SUCCEEDED":
        return 0
    return code if code in _EXIT_CODES and code else 1


def fetch(cluster: Cluster, job: str, into: Path) -> bool:
    """Bring back what a job wrote; whether there was anything. Says where it is, here and there.

    Raises: RunError if the archive is damaged; UserError if it cannot be written here.
    """
    with cluster.told():
        cluster.client.get_job_info(job)  # is there such a job?
    facts = cluster.facts(job)
    there = f"{facts.get('host')}:{facts.get('folder')}"
    if not facts or "sha256" not in facts:
        reason = facts.get("left", "the job was killed, or is still at it")
        say(f"nothing was brought back: {reason}" + (f"; on the cluster: {there}" if facts else ""))
        return False
    try:
        into.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=into) as scratch:
            archive, tree = Path(scratch) / "archive", Path(scratch) / "tree"
            with cluster.told():
                _download(cluster, job, archive, facts)
            unpack(archive, tree)
            shutil.copytree(tree, into, dirs_exist_ok=True)
            found = [path.relative_to(tree) for path in sorted(tree.glob("**/config.yaml"))]
    except OSError as error:
        raise write_failure(into, error) from error
    say(f"brought back into {into}: " + (", ".join(str(path.parent) for path in found) or "its files"))
    say(f"on the cluster, checkpoints included: {there}")
    if len(found) == 1:
        run = into / found[0].parent
        next_commands([f"marl evaluate {run}", f"marl report {run}"])
    return True


def _download(cluster: Cluster, job: str, target: Path, facts: dict[str, Any]) -> None:
    digest = hashlib.sha256()
    with cluster.log_file(job, archive_name(job), -1) as answer, target.open("wb") as file:
        while block := answer.read(1 << 20):
            digest.update(block)
            file.write(block)
    if digest.hexdigest() != facts["sha256"]:
        raise RunError(f"the archive of job {job} came back damaged; try again: {_again(cluster, '--fetch', job)}")


def unpack(archive: Path, into: Path) -> None:
    """Unpack an archive of plain files. Raises: RunError if it is none, or a name leads out of the folder."""
    into.mkdir()
    try:
        with tarfile.open(archive, "r:gz") as opened:
            opened.extractall(into, filter="data")
    except (tarfile.TarError, EOFError) as error:
        raise RunError(f"the archive cannot be unpacked: {error}") from None


def stop(cluster: Cluster, job: str) -> int:
    """Ask a job to stop; it saves a checkpoint first."""
    with cluster.told():
        asked = cluster.client.stop_job(job)
    say(f"job {job}: " + ("asked to stop; it saves a checkpoint first" if asked else "was not running"))
    next_commands([_again(cluster, "--status", job), _again(cluster, "--fetch", job)])
    return 0


def jobs(cluster: Cluster, job: str) -> list[dict[str, Any]]:
    """The state of a job, or of `all`, as rows."""
    with cluster.told():
        found = cluster.client.list_jobs() if job == "all" else [cluster.client.get_job_info(job)]
    rows = []
    for details in sorted(found, key=lambda details: details.start_time or 0):
        seconds = ((details.end_time or 0) - (details.start_time or 0)) / 1000
        rows.append(
            {
                "job": details.submission_id or details.job_id or "",
                "status": getattr(details.status, "value", str(details.status)).lower(),
                "exit_code": "" if details.driver_exit_code is None else details.driver_exit_code,
                "seconds": round(seconds, 1) if seconds > 0 else "",
                "command": (details.metadata or {}).get("command", ""),
            }
        )
    return rows


def _state(cluster: Cluster, job: str) -> tuple[str, int | None, str]:
    details = cluster.client.get_job_info(job)
    message = (details.message or "").strip().splitlines()
    return (
        getattr(details.status, "value", str(details.status)),
        details.driver_exit_code,
        message[0] if message else "",
    )


def _again(cluster: Cluster, option: str, job: str) -> str:
    return f"marl submit --address {cluster.url} {option} {job}"


def _fill(folder: Path, config_yaml: str, options: JobOptions) -> None:
    """The working folder of a job: the config, and whatever is shipped with it.

    Raises: UserError if that is too much, or something is missing.
    """
    ignored = shutil.ignore_patterns("__pycache__", "*.pyc", ".*")
    if options.code:  # the package holds links to the folders of worlds and algorithms; their files travel
        shutil.copytree(Path(__file__).resolve().parents[1], folder / "marl", ignore=ignored)
    for text in options.extra:
        path = Path(text)
        if not path.exists():
            raise UserError(f"--with {text}: no such file or folder")
        if path.is_dir():
            shutil.copytree(path, folder / path.resolve().name, ignore=ignored, dirs_exist_ok=True)
        else:
            shutil.copy(path, folder / path.name)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if size > CODE_MAX_BYTES:
        raise UserError(
            f"{size / 2**20:.0f} MiB would be shipped with the job; expected at most {CODE_MAX_BYTES >> 20} MiB"
        )
    (folder / "config.yaml").write_text(config_yaml, encoding="utf-8")
