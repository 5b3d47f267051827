"""The flow tags say how far actors lag, what waits, and which part holds the others up."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marl.dataflow.flow import FlowMeter

from .made import through_a_file


def test_lags_are_reported_as_mean_95th_percentile_and_maximum() -> None:
    meter = FlowMeter()
    meter.add_lag(0, 90)
    meter.add_lag(1, 5)
    meter.add_lag(7)
    meter.add_lag(3, 4)
    tags = meter.report()
    assert tags["flow/policy_lag"] == pytest.approx((5 + 7 + 12) / 100)
    assert (tags["flow/policy_lag_p95"], tags["flow/policy_lag_max"]) == (1.0, 7.0)


@settings(deadline=None, derandomize=True, max_examples=100)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=60))
def test_percentiles_are_those_of_the_sorted_lags(lags: list[int]) -> None:
    meter = FlowMeter()
    for lag in lags:
        meter.add_lag(lag)
    tags = meter.report()
    assert tags["flow/policy_lag_p95"] == np.percentile(lags, 95, method="inverted_cdf")
    assert tags["flow/policy_lag"] == pytest.approx(np.mean(lags))


def test_shares_of_time_sum_to_one_and_the_largest_busy_part_is_the_bottleneck() -> None:
    meter = FlowMeter()
    assert meter.bottleneck() == ""
    for part, seconds in {"world": 2.0, "inference": 3.0, "learner": 1.0, "waiting": 4.0}.items():
        meter.add_time(part, seconds / 2)
        meter.add_time(part, seconds / 2)
    tags = meter.report()
    shares = {tag: share for tag, share in tags.items() if tag.startswith("flow/bottleneck/")}
    assert shares == {
        "flow/bottleneck/world": pytest.approx(0.2),
        "flow/bottleneck/inference": pytest.approx(0.3),
        "flow/bottleneck/actor": 0.0,
        "flow/bottleneck/learner": pytest.approx(0.1),
        "flow/bottleneck/waiting": pytest.approx(0.4),
    }
    assert meter.bottleneck() == "inference"


def test_a_part_with_two_processes_is_busy_half_as_long() -> None:
    meter = FlowMeter({"world": 2})
    meter.add_time("world", 6.0)
    meter.add_time("learner", 4.0)
    assert meter.report()["flow/bottleneck/world"] == pytest.approx(3 / 7)
    assert meter.bottleneck() == "learner"


def test_waiting_is_named_only_if_nothing_was_busy() -> None:
    meter = FlowMeter()
    meter.add_time("waiting", 1.0)
    meter.report()
    assert meter.bottleneck() == "waiting"


def test_depths_are_means_of_an_interval_and_counts_are_totals() -> None:
    meter = FlowMeter()
    for n in (1, 2, 6):
        meter.depth("car", n)
    meter.depth("truck", 4)
    meter.add_chunks(offered=5, dropped=1)
    meter.add_samples(inserted=8, trained=16)
    assert meter.report() == {
        "flow/queue_depth/car": 3.0,
        "flow/queue_depth/truck": 4.0,
        "flow/chunks_offered": 5.0,
        "flow/chunks_dropped": 1.0,
        "flow/sample_reuse": 2.0,
    }
    meter.add_chunks(offered=1)
    meter.add_samples(inserted=8)
    assert meter.report() == {"flow/chunks_offered": 6.0, "flow/chunks_dropped": 1.0, "flow/sample_reuse": 1.0}


def test_totals_pass_through_a_file(tmp_path: Path) -> None:
    meter, after = FlowMeter(), FlowMeter()
    meter.add_chunks(offered=5, dropped=1)
    meter.add_samples(inserted=4, trained=2)
    after.add_lag(1)
    after.restore(through_a_file(meter.snapshot(), tmp_path))
    assert after.report() == meter.report()
