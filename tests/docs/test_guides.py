"""What the guide to the local dataflow says of its settings is what they are."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from marl.dataflow.flow import PARTS
from marl.runner.load import load_experiment
from marl.runner.schema import LocalConfig, WorldFaultsConfig


def guide(repository: Path) -> str:
    return (repository / "docs/guides/dataflow.md").read_text()


def test_the_example_of_the_guide_to_the_dataflow_is_an_experiment(repository: Path, tmp_path: Path) -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", guide(repository), re.DOTALL)
    path = tmp_path / "example.yaml"
    path.write_text(text)
    dataflow = load_experiment(str(path)).config.dataflow
    assert isinstance(dataflow, LocalConfig)
    assert dataflow.world_faults == WorldFaultsConfig()


def test_every_setting_stands_in_the_guide_with_its_default(repository: Path) -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*?) \| ", guide(repository), re.MULTILINE))
    settings = {name: field.default for name, field in LocalConfig.model_fields.items() if name != "kind"}
    assert rows.keys() == settings.keys()
    for name, said in rows.items():
        if name not in ("devices", "world_faults"):
            assert yaml.safe_load(said) == settings[name], name


def test_every_share_of_the_time_is_explained(repository: Path) -> None:
    explained = set(re.findall(r"^\| `flow/bottleneck/(\w+)`", guide(repository), re.MULTILINE))
    assert explained == set(PARTS)
    assert set(re.findall(r"flow/bottleneck/(\w+)", (repository / "docs/reference/metrics.md").read_text())) == set(
        PARTS
    )


def test_links_between_pages_lead_somewhere(repository: Path) -> None:
    pages = [repository / "README.md", repository / "CONTRIBUTING.md", *(repository / "docs").rglob("*.md")]
    for page in pages:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
