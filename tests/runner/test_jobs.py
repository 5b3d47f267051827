"""`marl submit`: what can be wrong is one line; a job's output, exit code and run folder come back."""

from __future__ import annotations

import asyncio
import http.server
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from marl import cli
from marl.core.errors import RunError, UserError
from marl.runner import job_follow
from marl.runner import jobs as jobs_module
from marl.runner.cluster_http import auth_headers, check_head, dashboard_url, open_url
from marl.runner.job_entry import pack
from marl.runner.jobs import JobOptions, unpack
from marl.runner.runs import list_runs

EXPERIMENT = """
name: tiny
seed: 1
env: {id: probe_credit_v0}
agents: {all: {algorithm: ppo, rollout: 8, epochs: 1, minibatches: 1, hidden_sizes: [8]}}
dataflow: {kind: fused, num_envs: 4, updates_per_dispatch: 2}
stop: {env_steps: 200}
evaluate: {every: 100, episodes: 4, video: false}
checkpoint: {every: 100}
"""


@pytest.fixture
def fake_head() -> Iterator[Callable[[int, str], str]]:
    """A function that starts a server which gives every request the same answer; returns its address."""
    servers = []

    def start(status: int, text: str) -> str:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *_: object) -> None:
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        servers.append((server, thread))
        return f"http://127.0.0.1:{server.server_address[1]}"

    yield start
    for server, thread in servers:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("127.0.0.1:8265", "did you mean 'http://127.0.0.1:8265'"),
        ("ray://head:10001", "ray:// is Ray Client's"),
        ("htp://head:8265", "did you mean 'http'"),
        ("http://head", "not of the form http://HOST:PORT"),
        ("http://head:port", "not of the form http://HOST:PORT"),
        ("http://head:8265/jobs", "not of the form http://HOST:PORT"),
        ("", "not of the form http://HOST:PORT"),
    ],
)
def test_an_address_of_another_form_is_explained(address: str, said: str) -> None:
    with pytest.raises(UserError, match="expected the address of the dashboard") as raised:
        dashboard_url(address)
    assert said in str(raised.value)


def test_a_dead_head_is_one_line_with_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        port = server.server_address[1]
    assert cli.main(["submit", "quickstart", "--address", f"http://127.0.0.1:{port}"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: no Ray head answers at http://127.0.0.1:{port} (connection refused)")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("status", "text", "said"),
    [
        (401, "Unauthorized: Missing authentication token", "wants a token, and none was found"),
        (403, "Forbidden: Invalid authentication token", "refuses the token"),
        (200, "<html>a router</html>", "not as the dashboard of a Ray head"),
        (404, "no such page", "not as the dashboard of a Ray head"),
        (200, '{"ray_version": "2.9.3"}', "runs Ray 2.9.3; expected at least 2.55 and less than 2.70"),
        (200, '{"ray_version": "3.0.0"}', "runs Ray 3.0.0; expected at least 2.55"),
    ],
)
def test_what_answers_must_be_a_head_that_fits_and_lets_us_in(
    fake_head: Callable[[int, str], str], status: int, text: str, said: str
) -> None:
    with pytest.raises(UserError) as raised:
        check_head(fake_head(status, text), {})
    assert said in str(raised.value)


def test_what_does_not_speak_http_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def speak() -> None:
            wire, _ = listening.accept()
            with wire:
                wire.recv(1000)
                wire.sendall(b"\0\0\x12\4\0 not HTTP\r\n")

        thread = threading.Thread(target=speak)
        thread.start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        assert cli.main(["submit", "quickstart", "--address", url]) == 2
        thread.join()
    error = capsys.readouterr().err
    assert error.startswith(f"error: {url} answers, but not as the dashboard of a Ray head")
    assert error.count("\n") == 1


class CutClient:
    """A client whose connection is cut again and again."""

    def __init__(self, texts: list[str]) -> None:
        self.texts, self.asked = texts, 0

    async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
        self.asked += 1
        yield "".join(self.texts[: self.asked])
        if self.asked < len(self.texts):
            raise RuntimeError("the connection was closed")

    def get_job_status(self, job: str) -> Any:
        return SimpleNamespace(is_terminal=lambda: True)


@pytest.mark.parametrize(("silent", "ends"), [(False, True), (True, False)])
def test_a_long_job_is_followed_through_any_number_of_cut_connections(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, silent: bool, ends: bool
) -> None:
    async def at_once(seconds: float) -> None:
        """Nobody waits here."""

    monkeypatch.setattr(job_follow.asyncio, "sleep", at_once)
    client = CutClient(["" if silent else f"line {number}\n" for number in range(3 * job_follow.RETRIES)])
    follower = job_follow.Follower(client, "job", 1)
    if ends:
        assert asyncio.run(follower.run())
        assert capsys.readouterr().out.splitlines() == [line.strip() for line in client.texts]
    else:
        with pytest.raises(RunError, match="no longer answers"):
            asyncio.run(follower.run())
        assert client.asked == job_follow.RETRIES + 1


def test_a_missing_extra_is_one_line(fake_head: Callable[[int, str], str], monkeypatch: pytest.MonkeyPatch) -> None:
    find = jobs_module.importlib.util.find_spec
    monkeypatch.setattr(jobs_module.importlib.util, "find_spec", lambda name: None if name == "aiohttp" else find(name))
    with pytest.raises(UserError, match=r"jobs need ray\[default\], and aiohttp is missing"):
        jobs_module.Cluster(fake_head(200, '{"ray_version": "2.60.0"}'))


def test_the_token_is_found_where_ray_finds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert auth_headers({}) == {}
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("from-home\n")
    (tmp_path / "token").write_text("from-file")
    named = {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}
    assert auth_headers({}) == {"Authorization": "Bearer from-home"}
    assert auth_headers(named) == {"Authorization": "Bearer from-file"}
    assert auth_headers({**named, "RAY_AUTH_TOKEN": "given"}) == {"Authorization": "Bearer given"}
    assert auth_headers({**named, "RAY_AUTH_MODE": "disabled"}) == {}
    with pytest.raises(UserError, match="No such file"):
        auth_headers({"RAY_AUTH_TOKEN_PATH": str(tmp_path / "absent")})
    with pytest.raises(UserError, match="no HTTP header may"):
        auth_headers({"RAY_AUTH_TOKEN": "two\nlines"})


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["quickstart"], "no --address"),
        (["--address", "http://127.0.0.1:1"], "no CONFIG"),
        (["quickstart", "--address", "http://127.0.0.1:1", "--stop", "job"], "expected one of them"),
        (["quickstart", "env.id=no_world", "--address", "http://127.0.0.1:1"], "no_world"),
        (["quickstart", "--address", "http://127.0.0.1:1", "--stop-wait", "0"], "expected 1s to 1d"),
    ],
)
def test_a_wrong_command_is_refused_before_anything_is_asked(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["submit", *arguments]) == 2
    assert said in capsys.readouterr().err


def make_run(folder: Path) -> None:
    for name in ("config.yaml", "policy/arrays.bin", "checkpoints/ckpt-1/arrays.bin", "run.lock"):
        path = folder / "tiny" / "20260101-000000-abcdef" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)


@pytest.mark.parametrize("checkpoints", [False, True])
def test_a_run_folder_travels_without_its_lock_and_with_checkpoints_if_asked(tmp_path: Path, checkpoints: bool) -> None:
    make_run(tmp_path / "there")
    (tmp_path / "there" / "link").symlink_to("/etc/passwd")
    facts = pack(tmp_path / "there", tmp_path / "run.tar.gz", checkpoints=checkpoints)
    assert facts["bytes"] == (tmp_path / "run.tar.gz").stat().st_size
    unpack(tmp_path / "run.tar.gz", tmp_path / "here")
    found = {path.name for path in (tmp_path / "here").rglob("*") if path.is_file()}
    assert found == {"config.yaml", "arrays.bin"}
    assert bool(list((tmp_path / "here").rglob("checkpoints"))) == checkpoints


def test_a_job_that_wrote_nothing_says_so(tmp_path: Path) -> None:
    assert pack(tmp_path / "absent", tmp_path / "run.tar.gz", checkpoints=False) == {"left": "the job wrote nothing"}


def test_an_archive_that_leads_out_of_its_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "evil").write_text("evil")
    with tarfile.open(tmp_path / "run.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "evil", arcname="../outside")
    with pytest.raises(RunError, match="cannot be unpacked"):
        unpack(tmp_path / "run.tar.gz", tmp_path / "here")
    assert not (tmp_path / "outside").exists()


def test_what_is_shipped_is_the_config_and_what_was_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "worlds").mkdir()
    (tmp_path / "worlds" / "mine.py").write_text("")
    (tmp_path / "plain").mkdir()
    jobs_module._fill(tmp_path / "plain", "name: x", JobOptions())
    assert [path.name for path in (tmp_path / "plain").rglob("*")] == ["config.yaml"]
    (tmp_path / "full").mkdir()
    jobs_module._fill(tmp_path / "full", "name: x", JobOptions(code=True, extra=(str(tmp_path / "worlds"),)))
    for name in ("marl/cli.py", "marl/envs/__init__.py", "marl/agents/__init__.py", "worlds/mine.py"):
        assert (tmp_path / "full" / name).is_file()
    assert not [path for path in (tmp_path / "full").rglob("*") if path.is_symlink()]
    with pytest.raises(UserError, match="no such file or folder"):
        jobs_module._fill(tmp_path / "plain", "name: x", JobOptions(extra=("absent",)))
    monkeypatch.setattr(jobs_module, "CODE_MAX_BYTES", 100)
    with pytest.raises(UserError, match="would be shipped"):
        jobs_module._fill(tmp_path / "full", "name: x", JobOptions())


@pytest.fixture(scope="module")
def head(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A head of our own with a second node, as `scripts/cluster/local` makes it; the environment of a client."""
    folder = Path(f"/tmp/marl-test-{os.getpid()}")
    script = [sys.executable, str(repository / "scripts" / "cluster" / "local")]
    where = ["--dir", str(folder), "--cpus", "2", "--object-store-mb", "80"]
    try:
        done = subprocess.run(
            [*script, "start", "--nodes", "2", *where, "--json"], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        state = json.loads(done.stdout)
        yield {
            "address": state["address"],
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": state["token_file"],
            "remote": str(tmp_path_factory.mktemp("remote")),
            "folder": str(folder),
        }
    finally:
        done = subprocess.run([*script, "stop", *where], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "stopped"
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            assert str(folder).encode() not in entry.read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
    assert sorted(path.name for path in folder.iterdir()) == ["head.log", "node2.log"]
    shutil.rmtree(folder)


def client(head: dict[str, str], *arguments: str, command: str = "submit", **changed: str) -> subprocess.Popen[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    environment |= {key: value for key, value in head.items() if key.startswith("RAY_")} | changed
    words = [sys.executable, "-m", "marl.cli", command, "--address", head["address"], *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(words, stdout=pipe, stderr=subprocess.STDOUT, text=True, env=environment)


@pytest.mark.slow
@pytest.mark.ray
def test_a_run_is_submitted_followed_and_brought_back(head: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(EXPERIMENT)
    where = ["--remote-dir", head["remote"], "--runs-dir", str(tmp_path / "back")]
    with client(head, str(tmp_path / "tiny.yaml"), *where) as process:
        output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert "eval   seed 1" in output  # the job's own lines
    assert "marl-job:" not in output
    (run,) = list_runs(tmp_path / "back")
    assert run.status == "done"
    assert (run.path / "policy" / "arrays.bin").is_file()
    assert not (run.path / "checkpoints").exists()
    assert list(Path(head["remote"]).rglob("checkpoints/latest"))
    assert cli.main(["evaluate", str(run.path), "--episodes", "4", "--json"]) == 0


@pytest.mark.slow
@pytest.mark.ray
def test_a_run_on_ray_uses_the_cluster_that_it_was_submitted_to(head: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(EXPERIMENT.replace("kind: fused", "kind: ray, actors: 2"))
    where = ["--remote-dir", head["remote"], "--runs-dir", str(tmp_path / "back")]
    with client(head, str(tmp_path / "tiny.yaml"), *where) as process:
        output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, output
    assert [run.status for run in list_runs(tmp_path / "back")] == ["done"]
    token = Path(head["RAY_AUTH_TOKEN_PATH"]).read_text()
    with open_url(head["address"], "/api/v0/actors", {"Authorization": f"Bearer {token}"}) as answer:
        actors = json.load(answer)["data"]["result"]["result"]
    assert len([actor for actor in actors if "Supervisor" not in actor["class_name"]]) >= 2


@pytest.mark.slow
@pytest.mark.ray
def test_a_sweep_runs_on_the_cluster_and_its_folder_comes_back(head: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(EXPERIMENT)
    where = ["--remote-dir", head["remote"], "-o", str(tmp_path / "back")]
    with client(head, str(tmp_path / "tiny.yaml"), "seed=[1,2]", *where, command="sweep") as process:
        output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, output
    rows = json.loads((tmp_path / "back" / "sweep.json").read_text())["trials"]
    assert [row["status"] for row in rows] == ["done", "done"]
    assert sorted(run.name for run in list_runs(tmp_path / "back" / "runs")) == ["tiny-seed-1", "tiny-seed-2"]


@pytest.mark.slow
@pytest.mark.ray
def test_ctrl_c_stops_the_job_with_a_checkpoint(head: dict[str, str], tmp_path: Path, interruptible: None) -> None:
    (tmp_path / "tiny.yaml").write_text(EXPERIMENT)
    where = ["--remote-dir", head["remote"], "--runs-dir", str(tmp_path / "back"), "--checkpoints"]
    endless = ["stop.env_steps=1_000_000_000", "evaluate.every=1_000_000_000", "checkpoint.every=1_000_000_000"]
    with client(head, str(tmp_path / "tiny.yaml"), *endless, *where) as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith("training"):
                process.send_signal(signal.SIGINT)
                break
        lines += list(process.stdout)
        code = process.wait(timeout=120)
    output = "".join(lines)
    assert code == 130, output
    assert "asking the job to stop" in output
    assert "stopped" in output
    (run,) = list_runs(tmp_path / "back")
    assert run.status == "interrupted"
    assert list((run.path / "checkpoints").glob("ckpt-*"))


@pytest.mark.slow
@pytest.mark.ray
def test_a_job_that_fails_gives_its_exit_code_and_the_rest_is_one_line(head: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(EXPERIMENT)
    where = ["--remote-dir", head["remote"], "--runs-dir", str(tmp_path / "back")]
    with client(head, str(tmp_path / "tiny.yaml"), "dataflow.devices.learner=gpu:3", *where) as process:
        output, _ = process.communicate(timeout=300)
    assert process.returncode == 2, output
    assert "nothing was brought back: the job wrote nothing" in output
    with client(head, "--status", "all", "--json") as process:
        output, _ = process.communicate(timeout=60)
    assert "failed" in {row["status"] for row in json.loads(output)}
    for arguments, changed, said in (
        (["--status", "absent"], {}, "knows no such job"),
        (["--fetch", "absent"], {}, "knows no such job"),
        (["quickstart"], {"RAY_AUTH_TOKEN": "wrong"}, "refuses the token (403)"),
        (["quickstart"], {"RAY_AUTH_TOKEN_PATH": "", "HOME": str(tmp_path)}, "wants a token"),
    ):
        with client(head, *arguments, **changed) as process:
            output, _ = process.communicate(timeout=60)
        assert process.returncode == 2, output
        assert said in output
        assert output.count("\n") == 1


@pytest.mark.slow
@pytest.mark.ray
def test_a_job_goes_on_without_its_client_and_is_looked_after_later(head: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(EXPERIMENT)
    with client(head, str(tmp_path / "tiny.yaml"), "--no-wait", "--remote-dir", head["remote"]) as process:
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    job = output.split()[1]
    deadline = time.monotonic() + 120
    status = "pending"
    while status in ("pending", "running") and time.monotonic() < deadline:
        with client(head, "--status", job, "--json") as process:
            status = json.loads(process.communicate(timeout=60)[0])[0]["status"]
    assert status == "succeeded"
    with client(head, "--fetch", job, "--runs-dir", str(tmp_path / "back")) as process:
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert [run.status for run in list_runs(tmp_path / "back")] == ["done"]
