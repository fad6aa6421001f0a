"""Aggregates against numbers worked out by hand, and intervals against what they promise."""

from __future__ import annotations

import numpy as np
import pytest

from egd.report.statistics import AGGREGATES, Estimate, estimate, improvement, iqm, mean, median


def test_iqm_is_the_mean_of_the_middle_half_of_all_scores() -> None:
    first, second = np.array([8.0, 1.0, 7.0, 2.0]), np.array([5.0, 4.0, 1000.0, 6.0])
    assert iqm(first, second) == pytest.approx((4 + 5 + 6 + 7) / 4)
    assert iqm(np.array([1.0, 2.0, 6.0])) == pytest.approx(3.0)  # a quarter of three is less than one score


def test_mean_and_median_are_over_tasks_however_many_seeds_each_has() -> None:
    strata = [np.array([0.0, 2.0]), np.array([2.0]), np.array([7.0, 9.0, 11.0])]
    assert mean(*strata) == pytest.approx(4.0)
    assert median(*strata) == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("x", "y", "share"), [([1, 3], [2, 2], 0.5), ([1, 3], [3, 3], 0.25), ([5, 6], [1, 2], 1.0), ([2], [2, 1, 3], 0.5)]
)
def test_improvement_counts_pairs_and_half_of_ties(x: list[float], y: list[float], share: float) -> None:
    assert improvement(np.array(x), np.array(y)) == pytest.approx(share)
    sure = np.array([9.0, 9.0]), np.array([0.0, 0.0])
    assert improvement(np.array(x), sure[0], np.array(y), sure[1]) == pytest.approx((share + 1) / 2)  # mean over tasks


@pytest.mark.parametrize("name", AGGREGATES)
def test_seeds_are_drawn_within_their_task(name: str) -> None:
    strata = [np.zeros(3), np.full(3, 100.0)]  # without strata, a resample would have another share of the two tasks
    assert estimate(AGGREGATES[name], strata) == Estimate(50.0, (50.0, 50.0))


def test_a_single_seed_has_no_interval() -> None:
    found = estimate(mean, [np.array([1.0, 3.0]), np.array([4.0])])
    assert found.interval is None
    assert found.text(1) == "3.0"
    assert estimate(mean, [np.array([1.0, 3.0])]).text(1) == "2.0 [1.0, 3.0]"


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    trials = [estimate(mean, [rng.normal(10, 2, 20), rng.normal(50, 4, 20)], resamples=500) for _ in range(300)]
    ends = np.array([found.interval for found in trials])
    covered = ((ends[:, 0] < 30) & (ends[:, 1] > 30)).mean()
    assert 0.90 < covered < 0.97  # a little below 0.95 with 20 seeds, as percentile intervals are
    width = 2 * 1.96 * np.sqrt((4 + 16) / 20) / 2  # of a mean of two means
    assert np.diff(ends).mean() == pytest.approx(width, rel=0.06)
