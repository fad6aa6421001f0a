"""Learning curves as numbers."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from egd.report.curves import area, paired, steps_to
from egd.report.tables import learning
from tests.egd.test_report import cell, egd, report, write

STEPS = (0, 100, 300)
SCORES = {  # by seed
    "edis": [(0, 40, 60), (0, 20, 40), (10, 10, 90)],
    "replay": [(0, 20, 60), (0, 30, 30), (10, 10, 10)],
}


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for method, by_seed in SCORES.items():
        for seed, scores in enumerate(by_seed):
            points = [{"phase": "critic", "step": 50, "score": 99}]
            points += [{"phase": "online", "step": k, "score": s} for k, s in zip(STEPS, scores, strict=True)]
            write(tmp_path / "runs", "door-cloned", method, seed, scores[-1], evaluations=points)
    return tmp_path / "runs"


def test_the_area_is_the_mean_over_steps() -> None:
    assert area({0: 0.0, 100: 40.0, 300: 60.0}) == pytest.approx((100 * 20 + 200 * 50) / 300)
    assert area({300: 6.0, 100: 4.0, 0: 4.0}) == pytest.approx((100 * 4 + 200 * 5) / 300)
    assert area({7: 3.0}) == 3.0


def test_steps_are_counted_to_the_first_evaluation_that_is_good_enough() -> None:
    curve = {0: 0.0, 100: 40.0, 200: 30.0, 300: 60.0}
    assert (steps_to(curve, 40), steps_to(curve, 41), steps_to(curve, 61)) == (100, 300, math.inf)


def test_differences_are_of_the_same_seed(runs: Path) -> None:
    found = paired(report(runs, against="replay"), "door-cloned", "edis")
    areas = {m: [area(dict(zip(STEPS, s, strict=True))) for s in by_seed] for m, by_seed in SCORES.items()}
    differences = np.subtract(areas["edis"], areas["replay"])
    assert found is not None
    assert found.value == pytest.approx(differences.mean())
    assert found.interval is not None
    half = 4.302653 * differences.std(ddof=1) / 3**0.5  # t of two degrees of freedom
    assert found.interval == pytest.approx((differences.mean() - half, differences.mean() + half))
    assert paired(report(runs, against="replay"), "door-cloned", "replay") is None


def test_the_table_has_areas_steps_and_differences(runs: Path) -> None:
    table = learning(report(runs, against="replay", threshold=50))
    turned = [row[1:] for row in table.rows]
    edis, replay = (dict(zip(table.header[1:], row, strict=True)) for row in turned)
    assert (edis["method"], replay["method"]) == ("edis", "replay")
    assert edis["end"] == "63.3 ± 25.2"
    assert edis["steps to 50"] == "300 (2 of 3)"
    assert replay["steps to 50"] == "never (1 of 3)"
    assert edis["less replay"].startswith("11.7 [-")
    assert replay["less replay"] == ""
    assert cell(table, "door", "mean over steps") == "33.3 ± 8.8"


def test_the_command_shows_it_and_names_a_row_that_is_not_there(runs: Path, tmp_path: Path) -> None:
    result = egd("report", runs, "--out", tmp_path / "out", "--against", "replay", "--threshold", "50")
    assert result.exit_code == 0, result.output
    assert "Learning curves" in result.output
    assert "less replay" in (tmp_path / "out" / "table.md").read_text()
    result = egd("report", runs, "--out", tmp_path / "out", "--against", "repaly")
    assert result.exit_code == 2
    assert "--against" in result.output
    assert "'replay'" in result.output
