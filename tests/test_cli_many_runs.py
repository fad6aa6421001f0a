"""Seeds and grids with the experiments that train one run a job: every run has its folder, and its rows name it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console
from typer.testing import CliRunner

from egd.cli import main as cli
from egd.cli import terminal

TOY2D = """
experiment: toy2d
tasks: [moons]
denoiser: {width: 8, blocks: 1, steps: 4, batch: 16}
calibration: {samples: 32, grid: 3}
estimators: {dps: dps}
betas: [3]
sampler: {steps: 2}
evaluation: {samples: 20, reference: 40, draws: 200, projections: 4}
"""
IMAGES = """
experiment: images
tasks: {digits: {}}
data: {name: digits}
targets: {brightness: {energy: {name: brightness, target: 0.38, width: 0.02}}}
estimators: {dps: {guidance: dps}}
unet: {widths: [8, 8], steps: 2, batch: 8}
classifier: {steps: 5}
calibration: {samples: 32, grid: 3}
steps: 2
evaluation: {samples: 10, reference: 100, draws: 100}
"""


def run(tmp_path: Path, recipe: str, *arguments: str) -> Any:
    path = tmp_path / "tiny.yaml"
    path.write_text(recipe)
    return CliRunner().invoke(cli.app, ["run", str(path), "--out", str(tmp_path / "out"), "--device", "cpu", *arguments])


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli.console, "width", 200)
    monkeypatch.setattr(cli.errors, "width", 200)


def cells(output: str) -> list[tuple[str, str]]:
    """The first two columns of the results table's rows."""
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in output.splitlines() if line.startswith("│")]
    return list(dict.fromkeys((row[0], row[1]) for row in rows))


@pytest.mark.parametrize(
    ("recipe", "key", "name"),
    [(TOY2D, "omega", "moons{}"), (IMAGES, "steps", "digits{} brightness, beta 1")],
    ids=["toy2d", "images"],
)
def test_seeds_and_a_grid_make_a_run_each_whose_rows_name_it(tmp_path: Path, recipe: str, key: str, name: str) -> None:
    result = run(tmp_path, recipe, "--seeds", "0,2", "--grid", f"{key}=2,3")
    assert result.exit_code == 0, result.output
    folders = sorted(str(p.parent.relative_to(tmp_path / "out")) for p in tmp_path.rglob("summary.json"))
    task = folders[0].split("/")[0]
    assert folders == [f"{task}/{key}={value}/seed-{seed}" for value in (2, 3) for seed in (0, 2)]
    for folder in folders:
        config = yaml.safe_load((tmp_path / "out" / folder / "config.yaml").read_text())
        assert f"{task}/{key}={config[key]:g}/seed-{config['seed']}" == folder
    assert cells(result.output) == [(name.format(seed), value) for value in ("2", "3") for seed in ("", " (2)")]
    assert f"{task} {key}=3 seed 2" in result.output
    evaluated = CliRunner().invoke(cli.app, ["eval", str(tmp_path / "out" / folders[-1]), "--device", "cpu"])
    assert evaluated.exit_code == 0, evaluated.output


def test_values_of_a_grid_may_be_lists_and_rows_with_other_columns_stand_in_one_table(tmp_path: Path) -> None:
    result = run(tmp_path, TOY2D, "--grid", "betas=[0, 3],[3, 5]")
    assert result.exit_code == 0, result.output
    assert "moons betas=[0, 3] seed 0" in result.output
    (header,) = [line for line in result.output.splitlines() if "estimator" in line and "┃" in line]
    columns = [cell.strip() for cell in header.split("┃")[1:-1]]
    rows = [[c.strip() for c in line.split("│")[1:-1]] for line in result.output.splitlines() if line.startswith("│")]
    at_zero = columns.index("β=0: W2 (E)")
    assert {(row[1], row[at_zero] == "") for row in rows} == {("[0, 3]", False), ("[3, 5]", True)}


@pytest.mark.parametrize("recipe", [TOY2D, IMAGES], ids=["toy2d", "images"])
def test_a_run_that_diverges_costs_no_other(tmp_path: Path, recipe: str, diverging_rate: str) -> None:
    part = "denoiser" if recipe is TOY2D else "unet"
    result = run(
        tmp_path, recipe, "--grid", f"{part}.lr=1e-3,{diverging_rate}", "--set", f"{part}.steps=6", "--set", "log_every=2"
    )
    assert result.exit_code == 2, result.output
    assert "not finite" in result.output
    assert f"1 of 2 failed: {'moons' if recipe is TOY2D else 'digits'} {part}.lr={diverging_rate} seed 0" in result.output
    assert [p.parent.parent.name for p in tmp_path.rglob("summary.json")] == [f"{part}.lr=1e-3"]


@pytest.mark.parametrize("recipe", [TOY2D, IMAGES], ids=["toy2d", "images"])
@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["--grid", "nope=1"], ["nope", "unknown key"]), (["--grid", "seed=1,2"], ["--seeds"]), (["--seeds", "3-1"], ["1-3"])],
)
def test_bad_input_is_named_with_its_remedy(tmp_path: Path, recipe: str, arguments: list[str], words: list[str]) -> None:
    result = run(tmp_path, recipe, *arguments)
    assert result.exit_code == 2, result.output
    assert all(word in result.output for word in words), result.output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["run", "sweep"])
def test_an_interrupted_run_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    path = tmp_path / "tiny.yaml"
    path.write_text(TOY2D)
    monkeypatch.setattr("egd.experiments.toy2d.job.train", interrupt)
    result = CliRunner().invoke(cli.app, [command, str(path), "--out", str(tmp_path / "out"), "--device", "cpu"])
    assert result.exit_code == 130
    assert "interrupted" in result.output and ("--resume" in result.output) == (command == "run")
    monkeypatch.undo()
    again = ["--resume"] if command == "run" else []
    assert (
        CliRunner().invoke(cli.app, [command, str(path), "--out", str(tmp_path / "out"), "--device", "cpu", *again]).exit_code
        == 0
    )


def test_on_a_narrow_terminal_what_is_the_same_goes_up_and_scores_stay(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"task": "door", "seed": "0", "method": method, "score": "0.4"} for method in ("iql", "edis")]
    monkeypatch.setattr(terminal, "console", Console(width=60))
    terminal.show(rows, "Results")
    title, *table = capsys.readouterr().out.splitlines()
    assert title == "Results; task: door; seed: 0"
    assert [line.count("0.4") for line in table if "iql" in line or "edis" in line] == [1, 1]
