"""Runs that measure samples in a report: tables, figure and CSV of their own rows."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from egd.cli import main as cli
from egd.runs.summaries import signed


def egd(*arguments: Any) -> Result:
    if "report" not in {command.name for command in cli.app.registered_commands}:
        cli.add_commands()
    return CliRunner().invoke(cli.app, [str(a) for a in arguments])


def write(place: Path, experiment: str, task: str, seed: int, results: Any) -> Path:
    run = place / task / f"seed-{seed}"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(yaml.safe_dump({"experiment": experiment, "task": task, "seed": seed}))
    (run / "summary.json").write_text(json.dumps(signed({"task": task, "seed": seed, "results": results})))
    return run


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two seeds of toy2d, one of images and one of an experiment that is not installed."""
    for seed in (0, 1):
        lines = {
            name: {beta: {"w2": float(beta) + seed, "energy": 1.0, "finite": 1.0} for beta in ("0", "3")}
            for name in ("dps", "cep")
        }
        lines["cep"]["3"] |= {"w2": None, "energy": None, "finite": 0.5}
        write(tmp_path / "runs", "toy2d", "moons", seed, lines)
    rows = [{"target": "class", "beta": 1.0, "estimator": "dps", "energy": -2.0, "accuracy": 0.5}]
    write(tmp_path / "runs", "images", "digits", 0, rows)
    write(tmp_path / "runs", "mine.py:Mine", "own", 0, [{"estimator": "x", "error": 0.25}])
    return tmp_path / "runs"


def test_runs_without_policies_are_reported(runs: Path, tmp_path: Path) -> None:
    done = egd("report", runs, "--out", tmp_path / "report")
    assert done.exit_code == 0, done.output
    assert {p.name for p in (tmp_path / "report").iterdir()} == {
        "index.html", "table.md", "table.tex", "measures.csv", "measures.png", "measures.svg",
    }  # fmt: skip
    text = (tmp_path / "report/table.md").read_text()
    assert "| moons | toy2d | dps | 3 | 3.500 ± 0.707 | 1.000 ± 0.000 |" in text
    assert "Measured by images" in text and "| own | mine.py:Mine | x | 0.250 |" in text
    with (tmp_path / "report/measures.csv").open() as file:
        found = {(r["task"], r["estimator"], r["beta"], r["measure"]): r["mean"] for r in csv.DictReader(file)}
    assert found["moons", "dps", "3", "w2"] == "3.5" and found["digits", "dps", "1", "accuracy"] == "0.5"
    assert ("moons", "cep", "3", "w2") not in found  # not finite


def test_only_some_of_them(runs: Path, tmp_path: Path) -> None:
    assert egd("report", runs, "--method", "toy2d", "--out", tmp_path / "report").exit_code == 0
    assert "images" not in (tmp_path / "report/table.md").read_text()
    refused = egd("report", runs, "--method", "toy", "--out", tmp_path / "report")
    assert refused.exit_code == 2 and "toy2d" in refused.output


def test_rows_that_are_none_are_damage(tmp_path: Path) -> None:
    write(tmp_path / "runs", "toy2d", "moons", 0, [{"w2": [1]}])
    done = egd("report", tmp_path / "runs", "--out", tmp_path / "report")
    assert done.exit_code == 2 and "rows" in done.output
