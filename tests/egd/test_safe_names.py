"""Names from people and from strangers: what may be a folder, and what a page, a table and a figure show of it."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from matplotlib.figure import Figure
from rich.console import Console
from typer.testing import CliRunner

from egd.cli import main as cli
from egd.errors import UserError
from egd.report.render import latex
from egd.report.tables import Table
from egd.runs.experiment import Options
from egd.runs.grid import parse_grid, variations
from egd.runs.progress import Reporter
from egd.runs.safe_names import apart, csv_cell, figure_text, folder_name, folder_of_task, literal, markdown, markup, printable
from egd.runs.summaries import signed

ORDINARY = ["beta0.5", "größe", "two words", "[a]", "[b]", "$x_{$", "a=1, b", "=SUM(A1)", "_hidden", "価値", "v1.", "<b>"]
IMPOSSIBLE = [
    "../../x",
    "/x",
    "a/b",
    "a\\b",
    "..",
    ".",
    "",
    " ",
    "a\0b",
    "a\nb",
    "\x1b[31m",
    "x" * 300,
    "ö" * 101,
    "nul",
    "Con.txt",
]


@pytest.mark.parametrize("name", ORDINARY)
def test_ordinary_names_are_folders_as_they_are(name: str) -> None:
    assert folder_name(name, "methods") == name


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_what_no_file_system_should_hold_is_refused_with_its_key(name: str) -> None:
    with pytest.raises(UserError, match="cannot be the name of a folder") as info:
        folder_name(name, "methods")
    assert info.value.key == "methods"
    assert str(info.value).isprintable() and len(str(info.value)) < 200


def test_a_tasks_id_of_several_parts_is_one_folder_and_two_never_share_one() -> None:
    assert folder_of_task("D4RL/door/human-v2", "tasks") == "D4RL-door-human-v2"
    for task in ("../../x-v0", "/x", "a//b"):
        with pytest.raises(UserError):
            folder_of_task(task, "tasks")
    apart({"a/b": "a-b", "a": "a"}, "tasks")
    with pytest.raises(UserError, match="'a/b' and 'a-b' would share the folder 'a-b'"):
        apart({"a/b": "a-b", "a-b": "a-b"}, "tasks")


def test_the_cells_of_a_grid_have_folders_of_their_own(tmp_path: Path) -> None:
    def folders(axis: str) -> list[str]:
        return [str(v.folder) for v in variations(Options(out=tmp_path, grid=parse_grid([axis])))]

    assert folders("data.datasets=[a/b-v0],[c-v0]") == ["data.datasets=[a-b-v0]", "data.datasets=[c-v0]"]
    assert folders("lr=1.,2.") == ["lr=1.", "lr=2."]
    for axis in ("x=a/b,a-b", f"x={'y' * 300},1", 'x=1,"a\x07"'):
        with pytest.raises(UserError) as info:
            folders(axis)
        assert info.value.key == "--grid"


def test_the_terminal_shows_names_as_they_are_and_no_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(width=400)
    for name in [*ORDINARY, *IMPOSSIBLE, "[/b]", "a\\"]:
        console.print(literal(name))
        assert capsys.readouterr().out.rstrip("\n") == printable(name, keep="\n").rstrip("\n")
        console.print(f"[red]{markup(name)}[/red]", highlight=False, soft_wrap=True)
        assert capsys.readouterr().out.rstrip("\n") == printable(name, keep="\n").rstrip("\n")
    assert printable("a\x1b]0;b\x07\u202e") == r"a\x1b]0;b\x07\u202e"
    assert printable("größe\u00a0価値") == "größe\u00a0価値"


def test_a_bar_and_a_warning_take_names_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    reporter = Reporter(Console(width=120))
    with reporter.bar("[/b] $x_{$", 2) as bar:
        bar.advance(2, "[/dim] \x1b[31m")
    reporter.warn("[/red]: look")
    shown = capsys.readouterr().out
    assert "[/b] $x_{$" in shown and r"[/dim] \x1b[31m" in shown and "[/red]: look" in shown


def test_markdown_csv_latex_and_figures() -> None:
    assert markdown("a|b `c` <img src=x> [d](e) *f* \\ g\nh") == r"a\|b \`c\` &lt;img src=x> [d]\(e) \*f\* \\ g\\nh"
    assert markdown("74.0 [70.1, 78.2] ± 5.3") == "74.0 [70.1, 78.2] ± 5.3"
    assert [csv_cell(v) for v in ("=1+1", "+1", "-x", "@a", "\ta", "a=b", -3.5)] == [
        "'=1+1", "'+1", "'-x", "'@a", r"'\ta", "a=b", -3.5
    ]  # fmt: skip
    assert r"{}[a] & 1 \\" in latex([Table("T", ["x", "y"], [["[a]", "1"]])])
    for name in [*ORDINARY, "$", "$$", r"\$x$", "\x07"]:
        figure = Figure()
        axis = figure.add_subplot(title=figure_text(name))
        axis.plot([1], [1], label=figure_text(name))
        axis.legend()
        figure.canvas.draw()
        assert len(axis.get_legend().get_texts()) == 1


TOY2D = """
experiment: toy2d
tasks: [moons]
denoiser: {width: 8, blocks: 1, steps: 2, batch: 16}
calibration: {samples: 32, grid: 3}
energy_network: {width: 8, layers: 1, steps: 2, batch: 8}
betas: [3]
sampler: {steps: 2}
evaluation: {samples: 20, reference: 40, draws: 200, projections: 4}
"""


def run(tmp_path: Path, names: list[str], out: str = "out") -> Any:
    """Of trained estimators, whose checkpoints are called after them."""
    path = tmp_path / "tiny.yaml"
    text = TOY2D + yaml.safe_dump({"estimators": dict.fromkeys(names, "mse")}, allow_unicode=True)
    path.write_text(text, encoding="utf-8")
    return CliRunner().invoke(cli.app, ["run", str(path), "-o", str(tmp_path / out), "--device", "cpu"])


def test_a_run_with_strange_names_in_a_strange_folder_is_intact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli.console, "width", 300)
    names = [name for name in ORDINARY if "." not in name and name != "価値"]
    done = run(tmp_path, names, "exp[/b] [a]")
    assert done.exit_code == 0, done.output
    assert all(name in done.output for name in names)
    assert f"{tmp_path}/exp[/b] [a]/" in done.output
    folder = tmp_path / "exp[/b] [a]" / "moons" / "seed-0"
    assert {p.name for p in (folder / "checkpoints").glob("energy*")} == {f"energy_{n}_beta3.safetensors" for n in names}
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    assert set(names) <= set(summary["results"])


@pytest.mark.parametrize("name", ["../../x", "/x", "a\0b", "x" * 300, ""])
def test_a_run_with_an_impossible_name_is_refused_before_anything_is_written(tmp_path: Path, name: str) -> None:
    refused = run(tmp_path, [name])
    assert refused.exit_code == 2 and "estimators" in refused.output, refused.output
    assert [p.name for p in tmp_path.iterdir()] == ["tiny.yaml"]


HOSTILE = ["[/red] $x_{$ <script>alert(1)</script>", "=cmd()|`b`", "_x\0y\x1b[31m"]


@pytest.mark.pictures
def test_a_report_of_strangers_names_is_whole(tmp_path: Path) -> None:
    for i, name in enumerate(HOSTILE):
        folder = tmp_path / "runs" / str(i)
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(yaml.safe_dump({"task": "t[/b]$_{$", "method": name, "seed": 0}))
        stats = {"mean": float(i), "std": 1.0, "episodes": 3}
        summary = {"task": "t[/b]$_{$", "method": name, "seed": 0, "headline": "p", "policies": {"p": stats}, "device": name}
        summary |= {
            "seconds": {name: 1.0},
            "remarks": [name],
            "evaluations": [{"phase": name, "step": k, "score": k} for k in (1, 2)],
        }
        (folder / "summary.json").write_text(json.dumps(signed(summary)))
        (folder / "metrics.jsonl").write_text(
            "".join(json.dumps({"phase": name, "step": k, name: k}) + "\n" for k in (1, 2, 3))
        )
    if "report" not in {command.name for command in cli.app.registered_commands}:
        cli.add_commands()
    arguments = ["report", str(tmp_path / "runs"), "-o", str(tmp_path / "out[/b]"), "--reference", "none", "--title", "<i>[/b]"]
    done = CliRunner().invoke(cli.app, arguments)
    assert done.exit_code == 0, done.output
    assert f"{tmp_path}/out[/b]/index.html" in done.output
    page, table, numbers = (
        (tmp_path / "out[/b]" / name).read_text(encoding="utf-8") for name in ("index.html", "table.md", "scores.csv")
    )
    assert "<script" not in page and "&lt;script&gt;" in page and "\0" not in page
    assert "<script" not in table and "\\|" in table and "\x1b" not in table
    lines = [re.sub(r"\\\|", "", line).count("|") for line in table.split("\n\n")[1].splitlines()]
    assert len(set(lines)) == 1
    cells = [row["method"] for row in csv.DictReader(numbers.splitlines())]
    assert len(cells) == len(HOSTILE) and not [cell for cell in cells if cell[0] in "=+-@\t"]
    assert (tmp_path / "out[/b]" / "curves.png").exists() and (tmp_path / "out[/b]" / "cost.svg").exists()
