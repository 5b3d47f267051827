"""A package of somebody else's, as it lies beside the project or as an installer leaves it."""

from __future__ import annotations

from pathlib import Path

import pytest

EXTERNAL_PACKAGE = Path(__file__).parent / "external_package"

ENTRY_POINTS = """\
[marl.envs]
tiny_bandit_v0 = tiny_marl.worlds:Bandit

[marl.agents]
tiny_gradient_bandit = tiny_marl.agents:GradientBandit
"""


@pytest.fixture
def tiny_marl(monkeypatch: pytest.MonkeyPatch) -> Path:
    """`tiny_marl` can be imported, here; the folder to put on PYTHONPATH for a process of its own."""
    monkeypatch.syspath_prepend(EXTERNAL_PACKAGE)
    return EXTERNAL_PACKAGE


@pytest.fixture
def tiny_marl_installed(tiny_marl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Besides, it declares entry points; the two folders to put on PYTHONPATH for a process of its own."""
    site = tmp_path / "site"
    info = site / "tiny_marl-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny-marl\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    monkeypatch.syspath_prepend(site)
    return tiny_marl, site
