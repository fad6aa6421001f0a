"""Many runs at once: each is what it would be alone, and none takes the others with it."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from egd.checkpoint import load_checkpoint, save_checkpoint
from egd.errors import UserError
from egd.runs.experiment import Options
from egd.runs.grid import RunsFailed, parse_grid, parse_seeds, variations
from egd.runs.progress import Reporter
from rl.agents.aepo import AEPO
from rl.config import GuidedConfig
from rl.critics import CriticLearner
from rl.runs import job as rl_job
from rl.runs.experiment import offline_rl
from rl.runs.run import OfflineRun
from rl.tasks import TASKS, find_task

DATASET = "egd/maze2d/short-v0"
TASK = DATASET.replace("/", "-")
RESULTS = ("headline", "policies", "best", "dataset_score", "diagnostics")
POISON = 2  # the seed of the run that diverges


@pytest.fixture
def tiny(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Closed forms alone, short episodes with a reward at every step."""
    dense = find_task("maze2d-umaze-dense").env_kwargs
    short = replace(find_task("egd/maze2d/umaze-v0"), name=DATASET, datasets=(DATASET,), max_steps=20, env_kwargs=dense)
    monkeypatch.setitem(TASKS, "short", short)
    tree = yaml.safe_load(recipe.read_text()) | {"variants": {"dps": {"energy": "dps"}}, "log_every": 5, "tasks": {DATASET: {}}}
    tree["data"]["generator"]["dense"] = True
    recipe.write_text(yaml.safe_dump(tree))
    return recipe


_PAIR: dict[str, Path] = {}


@pytest.fixture
def pair(egd: Any, tiny: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``OUT`` of two finished runs, of seeds 0 and 1: a copy of what was trained once."""
    if not _PAIR:
        out = tmp_path_factory.mktemp("pair") / "out"
        result = egd("run", tiny, "--out", out, "--seeds", "0,1")
        assert result.exit_code == 0, result.output
        _PAIR["out"] = out
    return Path(shutil.copytree(_PAIR["out"], tmp_path / "pair"))


def summary(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "summary.json").read_text())
    return {key: found[key] for key in RESULTS}


def table(output: str) -> list[list[str]]:
    """The cells of the results table's rows."""
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in output.splitlines() if line.startswith("│")]


@pytest.fixture
def in_one_program(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Runs are trained together, as on a GPU; how many at a time, a phase each."""
    from egd.runs import phases

    sizes: list[int] = []

    def batched(states: Any) -> Any:
        try:
            made = phases.BatchedLearner([s.phase.learner for s in states], [s.generator for s in states])
        except phases.NotBatchable:
            return None
        sizes.append(len(states))
        return made

    monkeypatch.setattr(phases, "_stacked", batched)
    return sizes


@pytest.fixture
def diverging(monkeypatch: pytest.MonkeyPatch) -> None:
    """The critic of one seed goes off, from a poisoned batch on."""
    from egd.runs.phase import seed_of

    draw, drawn_by = CriticLearner.draw, Counter[CriticLearner]()

    def poisoned(self: CriticLearner, generator: torch.Generator) -> Any:
        drawn = draw(self, generator)
        drawn_by[self] += 1
        if generator.initial_seed() == seed_of(POISON, "critic") and drawn_by[self] > 13:
            drawn = torch.utils._pytree.tree_map(lambda leaf: leaf * torch.nan if leaf.is_floating_point() else leaf, drawn)
        return drawn

    monkeypatch.setattr(CriticLearner, "draw", poisoned)


# -- together as apart ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_runs_of_seeds_and_a_grid_are_those_of_their_own_and_rows_tell_them_apart(egd: Any, tiny: Path, tmp_path: Path) -> None:
    together, alone = tmp_path / "together", tmp_path / "alone"
    result = egd("run", tiny, "--out", together, "--seeds", "0,3", "--grid", "guidance.beta=1,3")
    assert result.exit_code == 0, result.output
    assert "4 runs, guidance.beta=1,3 seed=0,3" in result.output
    assert egd("run", tiny, "--out", alone, "--seed", "3", "--set", "guidance.beta=1").exit_code == 0
    folders = [f"guidance.beta={beta}/seed-{seed}" for beta in (1, 3) for seed in (0, 3)]
    assert all((together / TASK / folder / "summary.json").exists() for folder in folders)
    own = together / TASK / "guidance.beta=1" / "seed-3"
    assert summary(own) == summary(alone / TASK / "seed-3")  # evaluated in one pass with others, or alone
    for phase in ("denoiser", "critic", "calibration"):
        one, other = (load_file(run / "checkpoints" / f"{phase}.safetensors") for run in (own, alone / TASK / "seed-3"))
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert "guidance.beta" in result.output
    cells = [(row[1], row[3]) for row in table(result.output)]
    assert list(dict.fromkeys(cells)) == [("1", "0"), ("1", "3"), ("3", "0"), ("3", "3")]
    shown = egd("eval", own, "--omega", "1")
    assert shown.exit_code == 0, shown.output


@pytest.mark.slow
def test_all_runs_are_evaluated_in_one_pass_unless_there_are_too_many(
    egd: Any, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[int] = []
    evaluate = rl_job.evaluate_together

    def counted(agents: Any, *arguments: Any, **settings: Any) -> Any:
        passes.append(len(agents))
        return evaluate(agents, *arguments, **settings)

    monkeypatch.setattr(rl_job, "evaluate_together", counted)
    assert egd("run", tiny, "--out", tmp_path / "a", "--seeds", "0-2").exit_code == 0
    assert passes == [3]
    monkeypatch.setattr(rl_job, "ENVIRONMENTS", 13)  # a run has 2 for behaviour and for either guided policy
    passes.clear()
    assert egd("run", tiny, "--out", tmp_path / "b", "--seeds", "0-2").exit_code == 0
    assert passes == [2, 1]
    for seed in range(3):
        assert summary(tmp_path / "a" / TASK / f"seed-{seed}") == summary(tmp_path / "b" / TASK / f"seed-{seed}")


def test_the_evaluations_seconds_are_shared_out(pair: Path) -> None:
    runs = [json.loads((pair / TASK / f"seed-{seed}" / "summary.json").read_text()) for seed in range(2)]
    assert runs[0]["seconds"]["evaluation"] == runs[1]["seconds"]["evaluation"] > 0


def config(**over: Any) -> GuidedConfig:
    return GuidedConfig.model_validate({"experiment": "offline_rl", "task": "pen-human", **over})


@pytest.mark.parametrize(
    "over",
    [
        {"seed": 4},
        {"critic": {"expectile": 0.9}},
        {"guidance": {"beta": 7.0, "omega": 2.0, "omegas": [0.5], "rule": "rescaled", "candidates": 3}},
        {"guidance": {"energy": "dps"}},
        {"evaluation": {"episodes": 3, "envs": 3}},
    ],
)
def test_what_comes_after_training_keeps_no_runs_apart(over: dict[str, Any]) -> None:
    assert AEPO.batch_key(config(**over)) == AEPO.batch_key(config())


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({}, {"critic": {"lr": 1e-3}}),
        ({}, {"evaluation": {"every": 10}}),
        ({}, {"guidance": {"energy": "mse"}}),
        ({"guidance": {"energy": "mse"}}, {"guidance": {"energy": "mse", "clip_x0": False}}),
        (
            {"guidance": {"energy": "mse", "beta": 3}, "variants": {"same": {"energy": "mse", "beta": 3}}},  # one network
            {"guidance": {"energy": "mse", "beta": 1}, "variants": {"same": {"energy": "mse", "beta": 3}}},  # two
        ),
    ],
)
def test_what_changes_training_keeps_runs_apart(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert AEPO.batch_key(config(**one)) != AEPO.batch_key(config(**other))


# -- failures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("together", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_diverging_run_fails_alone_and_is_retried_alone(
    egd: Any, tiny: Path, pair: Path, tmp_path: Path, request: pytest.FixtureRequest, together: bool
) -> None:
    sizes = request.getfixturevalue("in_one_program") if together else None
    well, out = pair, tmp_path / "out"
    request.getfixturevalue("diverging")
    result = egd("run", tiny, "--out", out, "--seeds", "0-2")
    assert sizes is None or sizes == [3, 3]
    assert result.exit_code == 2, result.output
    assert re.search(r"error egd/maze2d/short-v0 seed 2 critic: .*q_loss.* is not finite at step 15", result.output)
    assert "1 of 3 failed: egd/maze2d/short-v0 seed 2" in result.output
    assert {row[2] for row in table(result.output)} == {"0", "1"}
    for seed in (0, 1):
        found, want = (summary(root / TASK / f"seed-{seed}") for root in (out, well))
        assert found["policies"]["guided@1"]["returns"] == pytest.approx(want["policies"]["guided@1"]["returns"])
        for phase in ("critic", "denoiser"):
            one, other = (load_file(r / TASK / f"seed-{seed}" / "checkpoints" / f"{phase}.safetensors") for r in (out, well))
            torch.testing.assert_close(one, other)
    failed = out / TASK / "seed-2"
    assert not (failed / "summary.json").exists()
    assert not any(torch.isnan(t).any() for p in failed.rglob("*.safetensors") for t in load_file(p).values())


@pytest.mark.slow
def test_resume_retries_the_failed_run_only(
    egd: Any, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    draw = CriticLearner.draw
    request.getfixturevalue("diverging")
    assert egd("run", tiny, "--out", tmp_path / "out", "--seeds", "1,2").exit_code == 2
    monkeypatch.setattr(CriticLearner, "draw", draw)
    runs = tmp_path / "out" / TASK
    before = {p: p.stat().st_mtime_ns for p in (runs / "seed-1").rglob("*") if p.is_file()}
    result = egd("run", tiny, "--out", tmp_path / "out", "--seeds", "1,2", "--resume")
    assert result.exit_code == 0, result.output
    assert before == {p: p.stat().st_mtime_ns for p in (runs / "seed-1").rglob("*") if p.is_file()}
    assert egd("run", tiny, "--out", tmp_path / "alone", "--seed", "2").exit_code == 0
    assert summary(runs / "seed-2") == summary(tmp_path / "alone" / TASK / "seed-2")


def test_a_damaged_summary_costs_a_sweep_no_other_run(egd: Any, tiny: Path, pair: Path) -> None:
    sweep = ("sweep", tiny, "--out", pair, "--seeds", "0,1")
    path = pair / TASK / "seed-0" / "summary.json"
    before = summary(path.parent)
    path.write_text(path.read_text()[:100])
    result = egd(*sweep)
    said = " ".join(result.output.split())
    assert result.exit_code == 2, result.output
    assert "seed-0/summary.json is damaged (not JSON" in said and "remove it, and egd run --resume" in said
    assert "1 damaged run is left out" in said and "1 of 2 failed: egd/maze2d/short-v0 seed 0" in said
    assert {row[-2] for row in table(result.output)} == {"1"}  # seeds in the means
    path.unlink()
    assert egd(*sweep).exit_code == 0
    assert summary(path.parent) == before


@pytest.mark.parametrize(
    ("error", "code"), [(UserError("a remedy"), 2), pytest.param(ZeroDivisionError("a defect"), 1, marks=pytest.mark.slow)]
)
def test_a_run_that_fails_in_its_evaluation_costs_no_other_summary(
    egd: Any, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, code: int
) -> None:
    evaluate = rl_job.evaluate_together

    def failing(agents: Any, *arguments: Any, **settings: Any) -> Any:
        if 1 in settings["seeds"]:
            raise error
        return evaluate(agents, *arguments, **settings)

    monkeypatch.setattr(rl_job, "evaluate_together", failing)
    result = egd("run", tiny, "--out", tmp_path / "out", "--seeds", "0-2")
    assert result.exit_code == code
    assert str(error) in result.output
    assert "1 of 3 failed: egd/maze2d/short-v0 seed 1" in result.output
    assert sorted(p.parent.name for p in tmp_path.rglob("summary.json")) == ["seed-0", "seed-2"]


def test_a_summary_that_cannot_be_made_costs_no_other(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finish = OfflineRun.finish

    def failing(self: OfflineRun, *arguments: Any) -> Any:
        if self.config.seed == 0:
            raise OSError("disk full")
        return finish(self, *arguments)

    monkeypatch.setattr(OfflineRun, "finish", failing)
    (job,) = offline_rl.plan(yaml.safe_load(tiny.read_text()), Options(out=tmp_path / "out", seeds=[0, 1]))
    with pytest.raises(RunsFailed, match="seed 0: disk full") as some:
        job.run(Reporter())
    assert {row["seed"] for row in some.value.rows} == {"1"}


def test_a_folder_that_is_taken_costs_no_other_run(egd: Any, tiny: Path, pair: Path) -> None:
    shutil.rmtree(pair / TASK / "seed-1")
    result = egd("run", tiny, "--out", pair, "--seeds", "0,1")
    assert result.exit_code == 2
    assert "seed-0 holds a run already; add --resume" in result.output
    assert (pair / TASK / "seed-1" / "summary.json").exists()


# -- resuming with other means ----------------------------------------------------------------------------------------


def test_how_a_run_is_computed_may_change_when_it_is_resumed(
    egd: Any, tiny: Path, pair: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)  # it would count for all later tests
    run = pair / TASK / "seed-0"
    settings = [x for s in ("threads=2", "evaluation.workers=1", "compile=true") for x in ("--set", s)]
    shown = egd("run", tiny, "--out", pair, "--resume", *settings)
    assert shown.exit_code == 0, shown.output
    assert yaml.safe_load((run / "config.yaml").read_text())["threads"] == 1  # it was complete
    (run / "summary.json").unlink()
    assert egd("run", tiny, "--out", pair, "--resume", "--set", "threads=2").exit_code == 0
    assert yaml.safe_load((run / "config.yaml").read_text())["threads"] == 2
    refused = egd("run", tiny, "--out", pair, "--resume", "--set", "precision=bf16", "--set", "threads=2")
    assert refused.exit_code == 2
    assert "precision: 'float32' there, 'bf16' now" in refused.output
    assert "threads" not in refused.output


def test_a_run_goes_on_on_another_kind_of_device(egd: Any, tiny: Path, pair: Path) -> None:
    run = pair / TASK / "seed-0"
    (run / "summary.json").unlink()
    path = run / "checkpoints" / "critic.safetensors"
    tensors, meta = load_checkpoint(path)
    state = torch.zeros(16, dtype=torch.uint8)  # of the size of a GPU's generator
    save_checkpoint(path, {**tensors, "generator": state}, {**meta, "step": 20})
    result = egd("run", tiny, "--out", pair, "--resume")
    assert result.exit_code == 0, result.output
    assert load_checkpoint(path)[1]["step"] == 30


@pytest.mark.slow
def test_runs_at_the_same_step_go_on_together(egd: Any, tiny: Path, tmp_path: Path, in_one_program: list[int]) -> None:
    assert egd("run", tiny, "--out", tmp_path, "--seeds", "0-2").exit_code == 0
    assert in_one_program == [3, 3]  # denoiser and critic; a calibration is no gradient step
    for run in (tmp_path / TASK).iterdir():
        (run / "summary.json").unlink()
        (run / "checkpoints" / "critic.safetensors").unlink()
    path = tmp_path / TASK / "seed-1" / "checkpoints" / "denoiser.safetensors"
    path.unlink()
    in_one_program.clear()
    assert egd("run", tiny, "--out", tmp_path, "--seeds", "0-2", "--resume").exit_code == 0
    assert in_one_program == [1, 3]


# -- what the command line says ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--grid", "guidance.nope=1"], ["guidance.nope", "unknown key"]),
        (["--grid", "guidance.beta=1,high"], ["guidance.beta", "'high'"]),
        (["--grid", "x"], ["--grid", "'x'", "a.b=1,3,10"]),
        (["--grid", "x="], ["--grid", "'x='", "a.b=1,3,10"]),
        (["--grid", "=1,2"], ["--grid", "'=1,2'", "a.b=1,3,10"]),
        (["--grid", "x=1,]"], ["--grid", "'x=1,]'", "a.b=1,3,10"]),
        (["--grid", "guidance.beta=1,3,1.0"], ["--grid", "guidance.beta", "1.0", "twice"]),
        (["--grid", "critic.lr=1e-3,0.001"], ["--grid", "critic.lr", "0.001", "twice"]),
        (["--grid", "guidance.beta=1", "--grid", "guidance.beta=3"], ["--grid", "twice", "guidance.beta=1,3"]),
        (["--grid", "seed=1,2"], ["--grid", "'seed'", "--seeds"]),
        (["--grid", "task=pen-human"], ["--grid", "'task'", "--task"]),
        (["--seeds", "3-1"], ["--seeds", "'3-1'", "1-3"]),
        (["--seeds", "a"], ["--seeds", "'a'", "0-7"]),
        (["--seeds", ""], ["--seeds", "''", "0-7"]),
        (["--seeds", "1,,2"], ["--seeds", "'1,,2'"]),
        (["--seeds", "²"], ["--seeds", "'²'"]),
        (["--seeds", "0-3", "--seed", "1"], ["--seeds", "--seed", "not both"]),
    ],
)
def test_bad_input_is_named_with_its_remedy(
    egd: Any, tiny: Path, tmp_path: Path, arguments: list[str], words: list[str]
) -> None:
    result = egd("run", tiny, "--out", tmp_path / "out", *arguments)
    assert result.exit_code == 2, result.output
    assert all(word in result.output for word in words), result.output
    assert "Traceback" not in result.output
    assert len(result.output.splitlines()) < 5
    assert not (tmp_path / "out").exists()


def test_seeds_and_grids_are_read_as_they_are_written() -> None:
    assert parse_seeds("0-3, 7,2") == [0, 1, 2, 3, 7]
    assert parse_grid(["a.b=[1, 2],[3]", "c=3e-4, x/y.py:Z"]) == {"a.b": ["[1, 2]", "[3]"], "c": ["3e-4", "x/y.py:Z"]}
    runs = list(variations(Options(out=Path("o"), seeds=[0, 1], grid={"c": ["x/y", "z"], "d": ["1"]}, settings=["e=1"])))
    assert [str(run.folder) for run in runs] == ["c=x-y/d=1", "c=x-y/d=1", "c=z/d=1", "c=z/d=1"]
    assert runs[0].options.settings == ["e=1", "c=x/y", "d=1"]
    assert [run.options.seed for run in runs] == [0, 1, 0, 1]
    assert runs[0].cell == {"c": "x/y"}  # d does not vary
    (only,) = variations(Options(out=Path("o"), seed=5))
    assert (only.folder, only.options.seed, only.cell) == (Path(), 5, {})
