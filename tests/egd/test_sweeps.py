"""What a sweep tabulates: every run in its cell, and none under another's."""

from __future__ import annotations

import shutil
from pathlib import Path

from egd.runs.folder import RunFolder
from egd.runs.sweeps import cell_of, means_below
from tests.egd.test_report import stats


def finished(folder: Path, method: str, seed: int, score: float) -> None:
    run = RunFolder(folder)
    run.open({"task": "a", "method": method, "seed": seed}, resume=False)
    about = {"task": "a", "algorithm": "iql", "method": method, "seed": seed, "headline": "policy"}
    run.write_summary(about | {"policies": {"policy": stats(score)}})


def test_a_methods_name_is_no_cell_of_a_grid(tmp_path: Path) -> None:
    assert cell_of(Path("a/beta=1/lr=2/beta=3/seed-0/summary.json"), "iql") == {"beta": "3", "lr": "2"}
    assert cell_of(Path("a/beta=1/lr=2/seed-0/summary.json"), "beta=1") == {"lr": "2"}
    finished(tmp_path / "a" / "beta=1" / "seed-0", "beta=1", 0, 3.0)
    (row,) = means_below(tmp_path).rows
    assert (row["method"], row["score ± std"]) == ("beta=1", "3.0") and "beta" not in row


def test_a_summary_of_another_seed_is_left_out_and_named(tmp_path: Path) -> None:
    for seed, score in enumerate((1.0, 9.0)):
        finished(tmp_path / f"seed-{seed}", "iql", seed, score)
    shutil.copy(tmp_path / "seed-1" / "summary.json", tmp_path / "seed-0")
    found = means_below(tmp_path)
    assert [row["score ± std"] for row in found.rows] == ["9.0"]
    assert len(found.damaged) == 1 and "seed-0/summary.json is not of this run: config.yaml has seed 0" in found.damaged[0]
