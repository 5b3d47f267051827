"""Cluster files hold what their readers expect of them, and the local script refuses what cannot work."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

RAY_FILES = ("aws.yaml", "machines.yaml")
# The fields of KubeRay's ray.io/v1 that may be written, by the object that holds them.
RAY_JOB = {
    *("activeDeadlineSeconds", "backoffLimit", "clusterSelector", "deletionStrategy", "entrypoint"),
    *("entrypointNumCpus", "entrypointNumGpus", "entrypointResources", "jobId", "managedBy", "metadata"),
    *("preRunningDeadlineSeconds", "rayClusterSpec", "runtimeEnvYAML", "shutdownAfterJobFinishes", "submissionMode"),
    *("submitterConfig", "submitterPodTemplate", "suspend", "ttlSecondsAfterFinished"),
}
RAY_CLUSTER = {
    *("authOptions", "autoscalerOptions", "enableInTreeAutoscaling", "gcsFaultToleranceOptions", "headGroupSpec"),
    *("headServiceAnnotations", "managedBy", "rayVersion", "suspend", "workerGroupSpecs"),
}
HEAD_GROUP = {"enableIngress", "headService", "labels", "rayStartParams", "resources", "serviceType", "template"}
WORKER_GROUP = {
    *("groupName", "idleTimeoutSeconds", "labels", "maxReplicas", "minReplicas", "numOfHosts", "rayStartParams"),
    *("replicas", "resources", "scaleStrategy", "suspend", "template"),
}


def read(repository: Path, name: str) -> tuple[str, dict[str, Any]]:
    text = (repository / "scripts" / "cluster" / name).read_text()
    return text, yaml.safe_load(text)


@pytest.mark.parametrize("name", RAY_FILES)
def test_ray_takes_the_cluster_file(repository: Path, name: str) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    _, config = read(repository, name)
    validate_config(prepare_config(config))


def test_ray_would_refuse_a_key_that_it_does_not_know(repository: Path) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    _, config = read(repository, "aws.yaml")
    with pytest.raises(Exception, match="docking"):
        validate_config(prepare_config({**config, "docking": {}}))


@pytest.mark.parametrize("name", RAY_FILES)
def test_a_cluster_file_keeps_the_token_on_and_the_dashboard_to_itself(repository: Path, name: str) -> None:
    text, config = read(repository, name)
    assert re.search(r"^# NOT RUN ON .* BY US\.", text, re.M)
    (start,) = [line for line in config["head_start_ray_commands"] if "ray start" in line]
    assert "--dashboard-host=127.0.0.1" in start
    assert any("RAY_AUTH_MODE=token" in line for line in config["setup_commands"])
    assert "~/.ray/auth_token" in config["file_mounts"]
    assert not re.search(r"[0-9a-f]{32}", text)  # no token in the file


def test_the_kuberay_job_holds_documented_fields_only(repository: Path) -> None:
    text, job = read(repository, "kuberay-job.yaml")
    assert "# NOT RUN ON KUBERNETES BY US." in text
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    spec = job["spec"]
    cluster = spec["rayClusterSpec"]
    (workers,) = cluster["workerGroupSpecs"]
    assert set(spec) <= RAY_JOB
    assert set(cluster) <= RAY_CLUSTER
    assert set(cluster["headGroupSpec"]) <= HEAD_GROUP
    assert set(workers) <= WORKER_GROUP
    assert cluster["authOptions"] == {"mode": "token"}
    assert workers["minReplicas"] <= workers["replicas"] <= workers["maxReplicas"]
    for group in (cluster["headGroupSpec"], workers):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        (container,) = group["template"]["spec"]["containers"]
        assert container["resources"]["limits"].keys() == {"cpu", "memory"}
    images = {g["template"]["spec"]["containers"][0]["image"] for g in (cluster["headGroupSpec"], workers)}
    assert len(images) == 1


def test_a_stopped_kuberay_job_has_time_for_its_checkpoint(repository: Path) -> None:
    _, job = read(repository, "kuberay-job.yaml")
    wait = int(yaml.safe_load(job["spec"]["runtimeEnvYAML"])["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"])
    head = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    assert head["terminationGracePeriodSeconds"] > wait


def local(repository: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(repository / "scripts" / "cluster" / "local"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_local_cluster_says_what_is_not_there(repository: Path, tmp_path: Path) -> None:
    for what in ("env", "status"):
        done = local(repository, what, "--dir", str(tmp_path))
        assert (done.returncode, done.stdout) == (2, "")
        assert "no cluster is up" in done.stderr
    done = local(repository, "stop", "--dir", str(tmp_path))
    assert (done.returncode, done.stdout) == (0, "no cluster was up\n")


def test_a_folder_too_long_for_sockets_is_refused(repository: Path, tmp_path: Path) -> None:
    done = local(repository, "start", "--dir", str(tmp_path / ("x" * 60)))
    assert done.returncode == 2
    assert "too long for Ray's sockets" in done.stderr
    assert not list(tmp_path.iterdir())
