"""How the report writes numbers, names, cells and curves."""

from __future__ import annotations

import numpy as np
import pytest

from marl.runner.report_curves import on_one_grid
from marl.runner.report_data import Curve, method_kind, world_name, world_titles
from marl.runner.report_svg import ticks
from marl.runner.report_text import csv_text, interval_text, markdown_text, number


def test_cells_that_a_spreadsheet_would_run_get_a_quote() -> None:
    text = csv_text([["=1+1", "+1", "-1", "@x", "\tx", "plain", -1.5, -2, None, True, 'a "b", c']])
    assert text == '\'=1+1,\'+1,\'-1,\'@x,\'\tx,plain,-1.5,-2,,True,"a ""b"", c"\n'


def test_markdown_text_cannot_open_a_link_a_tag_or_a_cell() -> None:
    assert markdown_text("heterogeneous_highway_v0 (a=b)") == "heterogeneous_highway_v0 (a=b)"
    assert markdown_text("a|b <i>[x](y)\n_z_") == "a\\|b &lt;i&gt;\\[x\\](y) \\_z\\_"


@pytest.mark.parametrize(
    ("algorithm", "kind"),
    [
        ("ppo", "learned"),
        ("package.module:Mine", "learned"),
        ("random", "random"),
        ("scripted/random", "random"),
        ("scripted/constant", "constant"),
        ("scripted/always_idle", "constant"),
        ("scripted/highway_defensive", "scripted"),
    ],
)
def test_kinds_of_methods_follow_from_the_algorithms_name(algorithm: str, kind: str) -> None:
    assert method_kind(algorithm) == kind


def test_world_names_list_options_in_order() -> None:
    assert world_name({"id": "w", "b": 2, "a": "x", "observation": "y"}) == "w (a=x, b=2)"
    assert world_name({"id": "w", "time_limit": "terminated"}) == "w"


def test_world_titles_show_what_differs() -> None:
    assert world_titles(["w (a=x, b=2)"]) == {"w (a=x, b=2)": "w"}
    found = world_titles(["w (a=x, b=2)", "w (a=y, b=2)", "w (a=y, b=2, c=1)", "w"])
    assert list(found.values()) == ["w, a=x, b=2", "w, a=y, b=2", "w, a=y, b=2, c=1", "w"]
    assert list(world_titles(["w (a=x, b=2)", "w (a=y, b=2)"]).values()) == ["w, a=x", "w, a=y"]


def test_numbers_show_two_digits_of_their_uncertainty() -> None:
    assert interval_text((48.234, 46.1, 50.3)) == "48.2 [46.1, 50.3]"  # type: ignore[arg-type]
    assert interval_text((0.5, 0.4, 0.6), "success") == "50 [40, 60]"  # type: ignore[arg-type]
    assert interval_text((312.4, 250.0, 380.0), sign=True) == "+312 [250, 380]"  # type: ignore[arg-type]
    assert interval_text((20.01234, 20.01012, 20.01501)) == "20.01 [20.01, 20.02]"  # type: ignore[arg-type]
    assert interval_text((25.0, 25.0, 25.0)) == "25 [25, 25]"  # type: ignore[arg-type]
    assert number(-0.0001, 2) == "0.00"


def test_ticks_are_round_and_enclose() -> None:
    assert ticks(0.0, 500_000.0) == [0, 100_000, 200_000, 300_000, 400_000, 500_000]
    assert ticks(-0.3, 1.1) == pytest.approx([-0.5, 0.0, 0.5, 1.0, 1.5])
    low, *_, high = ticks(7.0, 7.0)
    assert low < 7.0 < high


def curve(seed: int, steps: list[float], values: list[float]) -> Curve:
    return Curve("x", seed, "t", np.asarray(steps), np.asarray(values))


def test_curves_meet_on_the_steps_that_all_seeds_reached() -> None:
    grid, values = on_one_grid([curve(0, [10, 20, 30], [1, 2, 3]), curve(1, [10, 30, 50], [1, 3, 5])])
    assert grid.tolist() == [10, 20, 30]
    assert values.tolist() == [[1, 2, 3], [1, 2, 3]]
    grid, values = on_one_grid([curve(0, [1, 2], [0, 0]), curve(1, [5, 6], [0, 0])])
    assert grid.size == 0


def test_long_curves_are_averaged_in_bins() -> None:
    steps = [float(s) for s in range(1, 1001)]
    grid, values = on_one_grid([curve(0, steps, steps)])
    assert len(grid) == 100
    np.testing.assert_allclose(values[0], grid)
    assert grid[0] == pytest.approx(5.5)
