"""``egd report`` on run folders written by hand: tables, page, figures, and what it refuses."""

from __future__ import annotations

import base64
import csv
import errno
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner, Result

from egd.cli import main as cli
from egd.errors import UserError
from egd.report import page, references
from egd.report.figures import FIGURES, draw
from egd.report.references import Reference
from egd.report.results import Report, collect
from egd.report.runs import find
from egd.report.tables import details, main, means, pairs
from egd.runs.summaries import Summary, signed

TASKS = ("door-cloned", "hopper-medium-v2", "walker2d-medium")
PAGES = {"index.html", "table.md", "table.csv", "table.tex", "scores.csv"}
SCORES = {"aepo": (60.0, 62.0, 70.0), "iql": (50.0, 40.0, 45.0)}  # by seed, on the first task; 10 more on each further one


def write(root: Path, task: str, method: str, seed: int, score: float, config: Any = None, **summary: Any) -> Path:
    """A finished run with these settings and these entries of its summary, the others made up."""
    folder = root / f"{len(list(root.rglob('config.yaml')))}-{task}-{method}-seed-{seed}"
    folder.mkdir(parents=True)
    settings = {"experiment": "x", "task": task, "agent": method, "method": method, "seed": seed, "device": "cpu"}
    (folder / "config.yaml").write_text(yaml.safe_dump(settings | (config or {})))
    guided = {
        f"{name}@{w}": stats(score + loss * (w - 1)) for name, loss in (("guided", -1), ("plain", -9)) for w in (0.5, 1, 2)
    }
    policies = {"behaviour": stats(score - 20), **guided} if method == "aepo" else {"policy": stats(score)}
    found = {"task": task, "algorithm": method, "method": method, "seed": seed, "normalised": True, "dataset_score": 33.3}
    found |= {"policies": policies, "headline": "guided@1" if method == "aepo" else "policy"}
    found |= {"best": {"phase": "critic", "step": 50, "score": score + 5}, "seconds": {"critic": 40.0, "evaluation": 2.0}}
    found["execution"] = ["device", "evaluation.workers", "threads"]
    found["evaluations"] = [{"phase": "critic", "step": k, "score": score * k / 100} for k in (50, 100)]
    (folder / "summary.json").write_text(json.dumps(signed(found | summary)))
    rows = [{"phase": "critic", "step": k, "q_loss": 1 / k, "q_mean": float(seed)} for k in range(1, 1001)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def stats(mean: float, episodes: int = 10) -> dict[str, Any]:
    return {"mean": mean, "std": 1.0, "episodes": episodes, "returns": [mean] * episodes, "raw_returns": [mean] * episodes}


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two methods on three tasks, three seeds."""
    root = tmp_path / "runs"
    for i, task in enumerate(TASKS):
        for method, scores in SCORES.items():
            for seed, score in enumerate(scores):
                write(root, task, method, seed, score + 10 * i)
    return root


def egd(*arguments: Any) -> Result:
    if "report" not in {command.name for command in cli.app.registered_commands}:
        cli.add_commands()
    return CliRunner().invoke(cli.app, [str(a) for a in arguments])


def report(root: Path, beside: Any = (), **options: Any) -> Report:
    return collect(find([root]), beside, title="T", **options)


def cell(table: Any, row: str, column: str) -> str:
    """Of a table, by the beginnings of its names."""
    j = next(j for j, name in enumerate(table.header) if name.startswith(column))
    return next(cells[j] for cells in table.rows if cells[0].startswith(row))


def test_main_table_has_means_deviations_and_aggregates_by_hand(runs: Path) -> None:
    table = main(report(runs))
    assert list(table.header) == ["task", "aepo (n = 3)", "iql (n = 3)"]
    assert cell(table, "door-cloned", "aepo") == "64.0 ± 5.3"  # sqrt((16 + 4 + 36) / 2)
    assert cell(table, "walker2d", "iql") == "65.0 ± 5.0"
    assert cell(table, "mean", "aepo").startswith("74.0 [")
    assert cell(table, "median", "iql").startswith("55.0 [")
    assert cell(table, "IQM", "iql").startswith("55.0 [")  # of 40 45 50 50 55 60 60 65 70 the middle five: 50 50 55 60 60
    assert cell(pairs(report(runs)), "aepo", "P(X > Y)") == "1.00 [1.00, 1.00]"


@pytest.mark.pictures
def test_the_page_stands_alone_and_has_the_numbers(runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = egd("report", runs, "--out", out, "--title", "Mine & yours")
    assert done.exit_code == 0, done.output
    page = (out / "index.html").read_text()
    assert "<h1>Mine &amp; yours</h1>" in page
    for text in ("64.0 ± 5.3", "n = 3", "69.0 ± 5.3", "95 % intervals", "18 runs", "seed 2"):
        assert text in page
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    drawn = set(re.findall(r'<figure id="(\w+)"', page))
    assert drawn == set(FIGURES) - {"sensitivity", "measures"}
    assert "Not drawn: the figure &#39;sensitivity&#39;" in page
    images = re.findall(r"base64,([^\"]+)", page)
    assert all(base64.b64decode(image).startswith(b"\x89PNG") for image in images)
    made = {path.name for path in out.iterdir()}
    assert made == {f"{n}.{e}" for n in drawn for e in ("png", "svg")} | PAGES
    assert "| door-cloned | 64.0 ± 5.3 |" in (out / "table.md").read_text()
    assert r"64.0 $\pm$ 5.3 &" in (out / "table.tex").read_text()
    assert "64.0 ± 5.3" in done.output
    assert max(map(len, done.output.split("Not drawn")[0].splitlines())) <= 80


def test_a_report_on_a_full_disk_leaves_the_earlier_one_as_it_was(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(figure: Any, path: Path, **_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    out = tmp_path / "out"
    page.write(report(runs), out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    write(runs, TASKS[0], "iql", 7, 99.0)
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", full)
    for place in (out, tmp_path / "new"):
        with pytest.raises(UserError, match="No space left on device; make room"):
            page.write(report(runs), place)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert not (tmp_path / "new").exists()


def test_csv_has_full_numbers(runs: Path, tmp_path: Path) -> None:
    egd("report", runs, "--out", tmp_path, "--reference", "none")
    rows = list(csv.DictReader((tmp_path / "table.csv").open()))
    own = next(r for r in rows if r["what"] == "result" and r["task"] == "door-cloned" and r["method"] == "aepo")
    assert float(own["std"]) == pytest.approx(np.std(SCORES["aepo"], ddof=1))
    assert (own["seeds"], own["episodes"], float(own["best"])) == ("3", "30", 69.0)
    assert {r["what"] for r in rows} == {"result", "mean", "median", "IQM", "P(X > Y)"}
    runs_of = [
        r for r in csv.DictReader((tmp_path / "scores.csv").open()) if (r["task"], r["method"]) == ("door-cloned", "aepo")
    ]
    assert [(int(r["seed"]), float(r["score"]), float(r["best"]), r["episodes"]) for r in runs_of] == [
        (seed, score, score + 5, "10") for seed, score in enumerate(SCORES["aepo"])
    ]


def test_settings_that_differ_between_runs_of_a_method_are_in_its_label(tmp_path: Path) -> None:
    for task, width in (("a", 64), ("b", 256)):  # the recipe's choice for the task
        for beta in (10.0, 2.0):
            for seed in (0, 1):
                how = {"device": "cuda" if seed else "cpu", "threads": seed + 1, "evaluation": {"workers": seed}}
                write(tmp_path, task, "aepo", seed, beta, {"guidance": {"beta": beta}, "denoiser": {"width": width}, **how})
        write(tmp_path, task, "iql", 0, 1.0)
    assert report(tmp_path).labels == ["aepo guidance.beta=2", "aepo guidance.beta=10", "iql"]


def test_settings_of_one_component_alone_do_not_lengthen_the_label(tmp_path: Path) -> None:
    write(tmp_path, "a", "aepo", 0, 1.0, {"critic": {"name": "iql", "expectile": 0.7}})
    write(tmp_path, "a", "aepo", 0, 2.0, {"critic": {"name": "cql", "alpha": 5}})
    assert report(tmp_path).labels == ["aepo critic.name=cql", "aepo critic.name=iql"]
    write(tmp_path, "a", "aepo", 0, 2.0, {"critic": {"name": "cql", "alpha": 9}})  # now alpha is all that tells two apart
    assert "aepo critic.name=cql critic.alpha=9" in report(tmp_path).labels


def test_what_variants_take_over_is_not_repeated(tmp_path: Path) -> None:
    for beta in (1.0, 2.0):
        guided = {"guidance": {"beta": beta}, "variants": {"plain": {"beta": beta}}, "critic": {"tau": beta}}
        write(tmp_path, "a", "aepo", 0, beta, guided)
    assert report(tmp_path).labels == ["aepo critic.tau=1 guidance.beta=1", "aepo critic.tau=2 guidance.beta=2"]


def test_a_seed_found_twice_counts_once(runs: Path) -> None:
    write(runs, "door-cloned", "aepo", 0, 1000.0)
    found = report(runs)
    assert len(found.cells["door-cloned", "aepo"]) == 3
    assert [reason.split(" as ")[0] for _, reason in found.skipped] == ["same task, settings and seed"]


def test_tasks_that_a_method_lacks_stay_out_of_aggregates(runs: Path) -> None:
    write(runs, "pen-human", "iql", 0, 1e6)
    write(runs, "umaze", "aepo", 0, 1e6, normalised=False)
    write(runs, "umaze", "iql", 0, 1e6, normalised=False)
    found = report(runs)
    assert found.common == list(TASKS)
    table = main(found)
    assert cell(table, "mean", "iql").startswith("55.0 [")
    notes = " ".join(table.notes)
    assert "pen-human (not run: aepo); umaze (not normalised)" in notes
    assert cell(table, "umaze*", "iql") == "1000000.0"
    assert "(n = 1-3)" in " ".join(table.header)


def test_one_seed_has_neither_deviation_nor_interval_and_the_table_says_so(tmp_path: Path) -> None:
    write(tmp_path, "a", "iql", 0, 41.0)
    table = main(report(tmp_path))
    assert cell(table, "a", "iql (n = 1)") == cell(table, "IQM", "iql") == "41.0"
    assert "No interval where a task has a single seed: iql." in table.notes


def test_all_policies_get_rows_on_demand(runs: Path) -> None:
    labels = report(runs, everything=True).labels
    assert labels[:3] == ["aepo", "aepo/behaviour", "aepo/guided@0.5"]
    assert labels[-1] == "iql"
    assert cell(main(report(runs, everything=True)), "aepo/behaviour", "door-cloned") == "44.0 ± 5.3"


def test_one_can_choose_methods(runs: Path) -> None:
    assert report(runs, only=["iql"]).labels == ["iql"]
    done = egd("report", runs, "--method", "aepp")
    assert done.exit_code == 2
    assert "did you mean 'aepo'" in done.output


def test_many_methods_go_down_the_page(runs: Path) -> None:
    beside = [Reference("S", "door-cloned", f"M{i}", 1.0) for i in range(9)]
    table = main(report(runs, beside))
    assert list(table.header)[:2] == ["method", "door-cloned"]
    assert cell(table, "aepo", "door-cloned") == "64.0 ± 5.3"


def test_folders_that_cannot_be_used_are_listed(runs: Path, tmp_path: Path) -> None:
    write(runs, "a", "iql", 5, 1.0).joinpath("summary.json").unlink()
    (other := write(runs, "a", "toy", 6, 1.0)).joinpath("summary.json").write_text(
        json.dumps(signed({"task": "a", "seed": 6, "results": {}}))
    )
    done = egd("report", runs, "--out", tmp_path)
    assert done.exit_code == 0
    for reason in ("not finished", f"{other.name}: it has neither scores of policies nor rows of results"):
        assert reason in "".join(done.output.split("\n"))
        assert reason in (tmp_path / "index.html").read_text()


SOUND = {"task": "a", "method": "iql", "seed": 9, "policies": {"policy": stats(1.0)}, "headline": "policy"}
OFF = stats(1.0) | {"mean": 9}
DAMAGE: dict[str, tuple[str, bytes | None, str]] = {
    "truncated": ("summary.json", b'{"task": "a", "se', "not JSON"),
    "empty": ("summary.json", b"", "it is empty"),
    "no mapping": ("summary.json", b"[1, 2]", "all of it"),
    "garbage": ("summary.json", bytes(range(128, 256)), "can't decode"),
    "another encoding": ("summary.json", json.dumps(SOUND).encode("utf-16"), "can't decode"),
    "deep": ("summary.json", b"[" * 100_000, "recursion"),
    "NaN": ("summary.json", json.dumps(SOUND | {"dataset_score": float("nan")}).encode(), "NaN is no result"),
    "no headline": ("summary.json", json.dumps(signed(SOUND | {"headline": "none"})).encode(), "headline policy 'none'"),
    "a text for a number": ("summary.json", json.dumps(SOUND | {"seed": "9"}).encode(), "seed: Input should be"),
    "another mean": (
        "summary.json",
        json.dumps(signed(SOUND | {"policies": {"policy": stats(1.0) | {"mean": 9}}})).encode(),
        "the mean 9",
    ),
    "another run's": (
        "summary.json",
        json.dumps(signed(SOUND | {"seed": 3})).encode(),
        "has seed 9, summary.json 3",
    ),
    "no digest": ("summary.json", json.dumps(SOUND).encode(), "has no digest: it was edited, or is of an earlier version"),
    "no config": ("config.yaml", None, "no config.yaml"),
    "empty config": ("config.yaml", b"", "config.yaml"),
    "config cut": ("config.yaml", b"experiment: x\ntask: [", "config.yaml"),
    "metrics cut": (
        "metrics.jsonl",
        b'{"phase": "critic", "step": 1}\n{"phase": "cri',
        "metrics.jsonl is damaged (line 2: not JSON",
    ),
    "metrics padded": ("metrics.jsonl", b'{"phase": "critic", "step": 1}\n' + bytes(64), "line 2: not JSON"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_run_is_named_left_out_and_counted(runs: Path, tmp_path: Path, damage: str) -> None:
    name, content, reason = DAMAGE[damage]
    folder = write(runs, "a", "iql", 9, 1.0)
    assert [run.path for run in find([runs]).runs if run.summary.task == "a"] == [folder]
    folder.joinpath(name).unlink() if content is None else folder.joinpath(name).write_bytes(content)
    found = find([runs])
    assert len(found.runs) == 18 and not found.skipped
    ((path, said),) = found.damaged
    assert path == folder and reason in said


def test_a_report_goes_on_without_a_damaged_run_and_its_exit_code_says_so(runs: Path, tmp_path: Path) -> None:
    assert egd("report", runs, "--figure", "radar", "--out", tmp_path / "sound").exit_code == 0
    write(runs, TASKS[0], "iql", 9, 1.0).joinpath("summary.json").write_bytes(b"{")
    done = egd("report", runs, "--figure", "radar", "--out", tmp_path / "out")
    assert done.exit_code == 2 and (tmp_path / "out" / "radar.png").exists()
    said = " ".join(done.output.split())
    assert "seed-9/summary.json is damaged (not JSON" in said.replace("- ", "-") and "1 damaged run is left out" in said
    assert "remove it, and egd run --resume" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{empty}"], "found no finished run"),
        (["{empty}/nowhere"], "no such folder"),
        (["{runs}", "--policies", "some"], "--policies"),
        (["{runs}", "--figure", "rader"], "did you mean 'radar'"),
        (["{runs}", "--figure", "sensitivity"], "--grid guidance.beta=1,2,3"),
        (["{runs}", "--reference", "{empty}/none.csv"], "cannot read"),
        (["{runs}", "--reference", "{bad}"], "missing: score"),
        (["{runs}", "--reference", "/dev/zero"], "a device or a pipe, not a file"),
    ],
    ids=lambda value: " ".join(value[1:]) if isinstance(value, list) else "",
)
def test_bad_input_is_explained(arguments: list[str], message: str, runs: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.csv").write_text("source,task,method\nS,a,M\n")
    places = {"empty": tmp_path / "empty", "runs": runs, "bad": tmp_path / "bad.csv"}
    done = egd("report", *(a.format(**places) for a in arguments), "--out", tmp_path / "out")
    assert done.exit_code == 2
    assert message in " ".join(done.output.split())
    assert not (tmp_path / "out").exists()


def test_published_results_stand_beside_runs_of_their_kind(runs: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.csv"
    file.write_text(
        "# mine\nsource,task,method,score,std,checkpoint\nS,hopper-medium,X,12.3,0.4,last\nS,hopper-medium,X,14,,best\n"
    )
    table = details(report(runs, references.read(file)))
    assert [row[1:4] for row in table.rows if row[1] == "X (S)"] == [["X (S)", "12.3 ± 0.4", "14.0"]]
    assert cell(main(report(runs, references.read(file))), "hopper-medium", "X (S)") == "12.3 ± 0.4"
    rows = [Reference("S", "door-cloned", "M", 1.0, algorithm=name) for name in (None, "IQL", "qgpo", "")]
    assert [r.algorithm for r in report(runs, rows).references] == [None, "IQL"]


def test_installed_references_have_the_results_of_the_paper() -> None:
    found = {(r.source, r.task, r.method, r.checkpoint): (r.score, r.std) for r in references.installed()}
    assert found["AEPO paper", "hopper-medium-expert", "AEPO", "last"] == (111.5, 1.1)
    assert found["AEPO paper", "maze2d-umaze", "AEPO", "last"] == (136.0, None)
    assert found["CORL", "hopper-medium-expert", "IQL", "best"] == (113.2, 0.4)


@pytest.mark.parametrize("name", sorted(set(FIGURES) - {"sensitivity", "measures"}))
def test_every_figure_names_what_it_shows(name: str, runs: Path, tmp_path: Path) -> None:
    figure = draw(name, report(runs))
    texts = {t.get_text() for legend in figure.legends for t in legend.get_texts()}
    texts |= {t.get_text() for axis in figure.axes for t in [*axis.get_yticklabels(), axis.xaxis.label]}
    wanted = {
        "omega": {"guided", "plain", "behaviour (omega = 0, temperature 1)", "guidance scale omega"},
        "cost": {"critic", "evaluation", "aepo", "iql"},
        "curves": {"aepo", "iql", "training steps (critic)"},
    }
    assert wanted.get(name, {"aepo", "iql"}) <= texts
    assert "n = 3 seeds" in (figure.get_suptitle() or figure.axes[0].get_title())
    done = egd("report", runs, "--figure", name, "--out", tmp_path / "one")
    assert done.exit_code == 0, done.output
    assert {path.name for path in (tmp_path / "one").iterdir()} == {f"{name}.png", f"{name}.svg"}


def lines(figure: Any, axis: int) -> dict[str, tuple[list[float], list[float]]]:
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in figure.axes[axis].lines}


def test_curves_and_omega_show_means_over_seeds(runs: Path) -> None:
    assert lines(draw("curves", report(runs)), 0)["aepo"] == ([50, 100], [pytest.approx(32.0), pytest.approx(64.0)])
    found = lines(draw("omega", report(runs)), 0)
    assert found["plain"] == ([0.5, 1, 2], [pytest.approx(68.5), pytest.approx(64.0), pytest.approx(55.0)])


def test_metrics_are_thinned_and_averaged(runs: Path) -> None:
    figure = draw("metrics", report(runs))
    assert [axis.get_title() for axis in figure.axes[:1]] == ["door-cloned\ncritic: q_loss"]
    steps, values = lines(figure, 3)["iql"]
    assert 100 <= len(steps) <= 150
    assert steps[-1] == 1000
    assert values == pytest.approx([1.0] * len(values))  # q_mean is the seed
    assert lines(figure, 0)["iql"][1][0] == pytest.approx(np.mean(1 / np.arange(1, 8)))


def test_sensitivity_has_a_line_for_every_task_and_other_setting(tmp_path: Path) -> None:
    for task in ("a", "b"):
        for beta in (1, 3):
            for seed in (0, 2):
                write(tmp_path, task, "aepo", seed, 10 * beta + seed, {"guidance": {"beta": beta, "rule": task}})
    figure = draw("sensitivity", report(tmp_path))
    assert [axis.get_title() for axis in figure.axes] == ["aepo: guidance.beta"]
    assert lines(figure, 0) == {name: ([1, 3], [pytest.approx(11.0), pytest.approx(31.0)]) for name in ("a", "b")}


def test_sensitivity_of_two_sweeps_has_no_line_of_one_point(tmp_path: Path) -> None:
    for beta, expectile in ((1, 0.7), (2, 0.7), (4, 0.7), (1, 0.5), (1, 0.9)):
        write(tmp_path, "a", "aepo", 0, beta + expectile, {"guidance": {"beta": beta}, "critic": {"expectile": expectile}})
    figure = draw("sensitivity", report(tmp_path))
    found = {axis.get_title(): list(lines(figure, i).items()) for i, axis in enumerate(figure.axes)}
    assert found == {
        "aepo: guidance.beta": [("a critic.expectile=0.7", ([1, 2, 4], pytest.approx([1.7, 2.7, 4.7])))],
        "aepo: critic.expectile": [("a guidance.beta=1", ([0.5, 0.7, 0.9], pytest.approx([1.5, 1.7, 1.9])))],
    }


def test_cost_is_over_the_runs_that_have_the_phase_on_shared_tasks(tmp_path: Path) -> None:
    write(tmp_path, "a", "iql", 0, 1.0, seconds={"critic": 100.0})
    write(tmp_path, "a", "iql", 1, 1.0, seconds={"critic": 60.0}, reused={"critic": "abc"})
    write(tmp_path, "a", "iql", 2, 1.0, seconds={"data": 0.0})
    write(tmp_path, "a", "aepo", 0, 1.0, seconds={"critic": 50.0}, action_ms=2.5)
    write(tmp_path, "b", "aepo", 0, 1.0, seconds={"critic": 9999.0}, action_ms=2.5)
    figure = draw("cost", report(tmp_path))
    assert sorted(bar.get_width() for bar in figure.axes[0].patches) == [0.0, 0.0, 50.0, 80.0]
    assert [bar.get_width() for bar in figure.axes[1].patches] == [2.5]


def test_a_figure_says_what_it_lacks(tmp_path: Path) -> None:
    write(tmp_path, "a", "iql", 0, 1.0, evaluations=[], seconds={}).joinpath("metrics.jsonl").unlink()
    for name, remedy in {"radar": "three tasks", "curves": "evaluation.every", "omega": "omegas", "cost": "seconds"}.items():
        with pytest.raises(UserError, match=remedy):
            draw(name, report(tmp_path))
    with pytest.raises(UserError, match="jsonl"):
        draw("metrics", report(tmp_path))


def test_means_over_seeds_by_task_cell_and_policy() -> None:
    base = {"task": "a", "method": "iql", "headline": "policy", "best": {"phase": "critic", "step": 1, "score": 9.0}}
    summaries = [base | {"seed": s, "policies": {"policy": stats(10.0 * s), "behaviour": stats(0.0)}} for s in (1, 2, 3)]
    cells = [{"critic.expectile": "0.7"}] * 2 + [{"critic.expectile": "0.9"}]
    rows = means([Summary.model_validate(summary) for summary in summaries], cells)
    first = {"task": "a", "critic.expectile": "0.7", "method": "iql", "policy": "policy"}
    assert rows[0] == {**first, "score ± std": "15.0 ± 7.1", "best": "9.0 ± 0.0", "seeds": "2", "episodes": "20"}
    assert [(r["critic.expectile"], r["policy"], r["score ± std"]) for r in rows[2:]] == [
        ("0.9", "policy", "30.0"),
        ("0.9", "behaviour", "0.0"),
    ]


def test_the_command_loads_nothing_heavy_until_it_runs() -> None:
    code = "import sys, egd.report.cli; print({'torch', 'scipy', 'matplotlib', 'jinja2'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
