"""The product: a recipe in, a run folder and a table out."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from egd.runs.folder import RunFolder
from rl.runs.job import OfflineJob
from rl.tasks import TASKS, Task
from tests.processes import exit_code, kill_when, start_egd

SEED0 = Path("egd-maze2d-umaze-v0") / "seed-0"


def weights(run: Path) -> dict[str, dict[str, torch.Tensor]]:
    return {p.stem: load_file(p) for p in sorted((run / "checkpoints").glob("*.safetensors"))}


def assert_same_run(one: Path, other: Path) -> None:
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    for phase, tensors in first.items():
        assert tensors.keys() == second[phase].keys()
        for name, tensor in tensors.items():
            assert torch.equal(tensor, second[phase][name]), (phase, name)
    results = [json.loads((run / "summary.json").read_text()) for run in (one, other)]
    for key in ("headline", "policies", "best", "evaluations", "dataset_score", "diagnostics"):
        assert results[0][key] == results[1][key], key
    assert (one / "metrics.jsonl").read_text() == (other / "metrics.jsonl").read_text()


@pytest.mark.pictures
def test_a_run_leaves_the_folder_it_promises(egd: Any, recipe: Path, tmp_path: Path) -> None:
    result = egd("run", recipe, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    run = tmp_path / "out" / SEED0
    summary = json.loads((run / "summary.json").read_text())
    assert {
        "task",
        "algorithm",
        "method",
        "seed",
        "device",
        "versions",
        "dataset_score",
        "headline",
        "policies",
        "best",
        "evaluations",
        "seconds",
        "reused",
    } <= summary.keys()
    for statistics in summary["policies"].values():
        assert statistics["episodes"] == len(statistics["returns"]) == 2
        assert statistics["mean"] == pytest.approx(sum(statistics["returns"]) / 2)
    assert set(summary["policies"]) == {"behaviour", "guided@1", "literal@1", "literal@0.5"}
    assert {name: shares["off_scale"] for name, shares in summary["sampling"].items() if "literal" not in name} == {
        "behaviour": 0.0,
        "guided@1": 0.0,
    }
    assert set(summary["sampling"]) == set(summary["policies"])
    assert summary["headline"] == "guided@1"
    assert summary["best"] == summary["evaluations"][-1]
    assert set(weights(run)) == {"denoiser", "critic", "calibration", "energy_literal"}
    assert {p.name for p in (run / "figures").iterdir()} == {"posterior_variance.png", "omega.png", "maze.png"}
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in steps if r["phase"] == "critic"] == [7, 10, 14, 20, 21, 28, 30]


@pytest.mark.slow
def test_the_resolved_config_repeats_the_run(egd: Any, recipe: Path, tmp_path: Path) -> None:
    assert egd("run", recipe, "--out", tmp_path / "a", "--set", "evaluation.every=15").exit_code == 0
    result = egd("run", tmp_path / "a" / SEED0 / "config.yaml", "--out", tmp_path / "b")
    assert result.exit_code == 0, result.output
    assert_same_run(tmp_path / "a" / SEED0, tmp_path / "b" / SEED0)


PHASES = {
    "training=phased": ["denoiser", "critic", "calibration", "energy_literal"],
    "training=joint": ["joint"],
    "variants.literal.energy=dps": ["denoiser", "critic", "calibration"],  # nothing but closed forms
}


@pytest.mark.slow
@pytest.mark.parametrize("setting", PHASES)
def test_a_run_killed_in_every_phase_ends_as_one_never_killed(recipe: Path, tmp_path: Path, setting: str) -> None:
    settings = ["--set", setting, "--set", "denoiser.steps=60", "--set", "evaluation.every=20"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert exit_code(start_egd("run", recipe, "--out", whole, *settings)) == 0
    for phase in PHASES[setting]:  # each kill comes at the phase's first checkpoint, before its end or just behind it
        path = killed / SEED0 / "checkpoints" / f"{phase}.safetensors"
        resume = ["--resume"] if killed.exists() else []
        kill_when(start_egd("run", recipe, "--out", killed, *settings, *resume), path)
        assert not (killed / SEED0 / "summary.json").exists()
    assert exit_code(start_egd("run", recipe, "--out", killed, *settings, "--resume")) == 0
    assert_same_run(whole / SEED0, killed / SEED0)


def test_an_existing_run_is_never_overwritten(egd: Any, recipe: Path, trained: Path) -> None:
    out = trained
    before = (out / SEED0 / "summary.json").read_bytes()
    again = egd("run", recipe, "--out", out)
    assert again.exit_code == 2
    assert "--resume" in again.output
    shown = egd("run", recipe, "--out", out, "--resume")
    assert shown.exit_code == 0
    assert "behaviour" in shown.output
    other = egd("run", recipe, "--out", out, "--resume", "--set", "critic.expectile=0.9")
    assert other.exit_code == 2
    assert "critic.expectile: 0.7 there, 0.9 now" in other.output
    assert (out / SEED0 / "summary.json").read_bytes() == before


def test_eval_rolls_out_other_scales_without_training(egd: Any, trained: Path) -> None:
    run = trained / SEED0
    before = weights(run)
    result = egd("eval", run, "--omega", "0,0.25,4", "--episodes", "2")
    assert result.exit_code == 0, result.output
    rows = [line.split() for line in result.output.splitlines() if "egd/maze2d" in line and "│" in line]
    found = [(row[9], row[11]) for row in rows]
    assert found == [("behaviour", "0"), ("guided", "0.25"), ("guided", "4"), ("literal", "0.25"), ("literal", "4")]
    assert all(torch.equal(before[p][n], t) for p, ts in weights(run).items() for n, t in ts.items())


def test_eval_shows_its_scores_where_it_cannot_note_them(egd: Any, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: RunFolder, row: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(self.metrics))

    monkeypatch.setattr(RunFolder, "log", refuse)
    result = egd("eval", trained / SEED0)
    assert result.exit_code == 0, result.output
    assert "metrics.jsonl: Read-only file system" in result.output
    assert "score ± s.e." in result.output


def test_eval_repeats_the_scores_of_the_run(egd: Any, trained: Path) -> None:
    summary = json.loads((trained / SEED0 / "summary.json").read_text())
    assert egd("eval", trained / SEED0).exit_code == 0
    last = json.loads((trained / SEED0 / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["behaviour"] == pytest.approx(summary["policies"]["behaviour"]["mean"])
    assert last["literal@0.5"] == pytest.approx(summary["policies"]["literal@0.5"]["mean"])


def test_a_dataset_that_cannot_be_had_fails_its_task_only(
    egd: Any, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import minari

    def no_network(dataset_id: str) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(minari, "download_dataset", no_network)
    tree = yaml.safe_load(recipe.read_text())
    tree["tasks"] = {"door-human": {"data": {"generator": None}}, "egd/maze2d/umaze-v0": {}}
    recipe.write_text(yaml.safe_dump(tree))
    result = egd("run", recipe, "--out", tmp_path / "out")
    assert result.exit_code == 2
    for words in ("door-human", "D4RL/door/human-v2", "no route to host", "egd data import", "MINARI_DATASETS_PATH"):
        assert words in result.output
    assert (tmp_path / "out" / SEED0 / "summary.json").exists()
    assert "Traceback" not in result.output


def test_a_diverging_run_says_so_and_a_crash_costs_no_other_task(
    egd: Any, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, diverging_rate: str
) -> None:
    diverged = egd("run", recipe, "--out", tmp_path / "nan", "--set", f"critic.lr={diverging_rate}")
    assert diverged.exit_code == 2
    assert "not finite" in diverged.output
    assert "critic" in diverged.output
    run = OfflineJob.run

    def crash_once(job: OfflineJob, reporter: Any) -> Any:
        if job.planned[0].config.task == "door-human":
            raise ZeroDivisionError("a defect")
        return run(job, reporter)

    monkeypatch.setattr(OfflineJob, "run", crash_once)
    recipe.write_text(recipe.read_text().replace("tasks: {", "tasks: {door-human: {}, "))
    result = egd("run", recipe, "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert "a defect" in result.output
    assert (tmp_path / "out" / SEED0 / "summary.json").exists()


def test_an_environment_that_does_not_fit_stops_the_run_before_it_trains(
    egd: Any, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert egd("data", "generate", "egd/maze2d/umaze-v5", "--steps", "300").exit_code == 0
    monkeypatch.setitem(TASKS, "gone", Task("gone", "other", ("egd/maze2d/umaze-v5",), "NoSuchEnv-v0"))
    monkeypatch.setitem(TASKS, "other", Task("other", "other", ("egd/maze2d/umaze-v5",), "Hopper-v5"))
    for task, words in {"gone": ["gone", "NoSuchEnv"], "other": ["11 observation", "data 4 and 2", "data.datasets"]}.items():
        result = egd("run", recipe, "--out", tmp_path / "out", "--task", task, "--set", "data.generator=null")
        assert result.exit_code == 2
        assert all(word in result.output for word in words), result.output
        assert not list((tmp_path / "out").rglob("*.safetensors"))


@pytest.mark.parametrize(
    "guidance",
    [
        "energy: first_order",
        pytest.param("energy: {name: first_order, variance: false}", marks=pytest.mark.slow),
        "energy: dps, rule: rescaled, omega: 3",
        pytest.param("energy: {name: monte_carlo, samples: 4}, posterior: posterior2", marks=pytest.mark.slow),
        "energy: mse, omega: 0.5",
        pytest.param(
            "energy: {name: analytic, expand_at: mean, variance: false}, energy_scale: advantage_std", marks=pytest.mark.slow
        ),
        "omega: 0, candidates: 4",
        pytest.param("energy: dps}, schedule: vp_cosine, sampler: {spacing: log_snr, steps: 4", marks=pytest.mark.slow),
        "energy: dps}, schedule: flow_matching, denoiser: {prediction: flow}, sampler: {name: heun, steps: 3",
        pytest.param(
            "energy: mse}, schedule: ve, denoiser: {prediction: sample}, sampler: {name: ancestral, spacing: karras, steps: 4",
            marks=pytest.mark.slow,
        ),
        "omega: 1}, schedule: {name: diffusers, scheduler: DDPMScheduler}, sampler: {name: ddim, eta: 0.5, steps: 3",
    ],
)
def test_every_way_to_guide_runs_from_a_recipe(egd: Any, recipe: Path, tmp_path: Path, guidance: str) -> None:
    tree = yaml.safe_load(recipe.read_text()) | {"variants": {}} | yaml.safe_load(f"{{guidance: {{{guidance}}}}}")
    recipe.write_text(yaml.safe_dump(tree))
    settings = [x for key in ("denoiser", "critic", "energy_network") for x in ("--set", f"{key}.steps=3")]
    result = egd("run", recipe, "--out", tmp_path, *settings)
    assert result.exit_code == 0, result.output
    summary = json.loads((tmp_path / SEED0 / "summary.json").read_text())
    assert len(summary["policies"][summary["headline"]]["returns"]) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--set", "critic.expectle=0.3"], ["critic.expectle", "expectile"]),
        (["--set", "critic.expectile=high"], ["critic.expectile", "'high'"]),
        (["--set", "critic.expectile=1.5"], ["critic.expectile", "1.5", "less than 1"]),
        (["--set", "guidance.energy=frst_order"], ["guidance.energy", "frst_order", "first_order"]),
        (["--set", "guidance.energy.sample=3"], ["guidance.energy.sample", "samples"]),
        (["--set", "variants.literal.rule=rescale"], ["variants.literal.rule", "rescaled"]),
        (["--set", "guidance.energy=nowhere.py:Mine"], ["nowhere.py", "no such file"]),
        (["--set", "data.generator.step=9"], ["data.generator.step", "steps"]),
        (["--set", "sampler.spacing=log_snr", "--set", "sampler.end=0"], ["sampler", "end > 0"]),
        (["--set", "sampler.name=ddpm"], ["sampler", "no sampler is called 'ddpm'", "ddim"]),
        (["--set", "sampler.step=5"], ["sampler.step", "no setting 'step'", "'steps'"]),
        (["--set", "sampler={name: ddim, eta: much}"], ["sampler.eta", "'much'"]),
        (["--set", "denoiser.prediction=noise"], ["denoiser.prediction", "'noise'", "epsilon"]),
        (["--set", "schedule={name: diffusers, scheduler: DDPMSheduler}"], ["schedule", "DDPMScheduler"]),
        (["--set", "schedule={name: ve, sigma_min: 60}"], ["schedule", "sigma_min < sigma_max"]),
        (["--set", "nonsense"], ["--set", "nonsense", "a.b=c"]),
        (["--set", "variants.guided.beta=3"], ["variants", "guided"]),
        (["--set", "variants=[1]"], ["variants", "[1]", "setting: value"]),
        (["--set", "critic.name=iqll"], ["critic.name", "iqll", "'iql'"]),
        (["--set", "critic.name=builtins:dict"], ["critic.name", "builtins:dict", "not a component"]),
        (["--set", "guidance.energy=builtins:object"], ["guidance.energy", "builtins:object", "not a component"]),
        (["--set", "agent=iql", "--set", "guidance.omega=1"], ["--set", "iql has no 'guidance'", "aepo"]),
        (["--set", "agent=iql", "--grid", "guidance.beta=1,3"], ["--grid", "iql has no 'guidance'", "aepo"]),
        (["--set", "training=joint", "--set", "variants.literal.energy=cep"], ["training", "'literal'", "'phased'"]),
        (["--set", "training=joint", "--set", "critic.name=isql"], ["training", "'isql'", "'phased'"]),
        (["--task", "dor-human"], ["--task", "dor-human", "door-human"]),
        (["--budget", "smke"], ["--budget", "smke", "smoke"]),
        (["--device", "tpu"], ["--device", "tpu", "cpu"]),
        (["--set", "experiment=ofline_rl"], []),
    ],
)
def test_bad_input_is_named_with_its_remedy(
    egd: Any, recipe: Path, tmp_path: Path, arguments: list[str], words: list[str]
) -> None:
    if not words:
        recipe.write_text(recipe.read_text().replace("offline_rl", "ofline_rl"))
        arguments, words = [], ["experiment", "ofline_rl", "offline_rl"]
    result = egd("run", recipe, "--out", tmp_path / "out", *arguments)
    assert result.exit_code == 2, result.output
    assert all(word in result.output for word in words), result.output
    assert "Traceback" not in result.output
    assert len(result.output.splitlines()) < 15
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ("tasks: {egd/maze2d/umaze-v0: 3}", ["tasks.egd/maze2d/umaze-v0", "got 3"]),
        ("tasks: hopper-medium", ["tasks", "'hopper-medium'"]),
        ("methods: [iql]", ["methods", "['iql']"]),
        ("methods: {iql: 1}", ["methods.iql", "got 1"]),
        ("budgets: [smoke]", ["budgets", "['smoke']"]),
    ],
)
def test_a_section_of_another_form_is_named(egd: Any, recipe: Path, tmp_path: Path, section: str, words: list[str]) -> None:
    recipe.write_text(yaml.safe_dump(yaml.safe_load(recipe.read_text()) | yaml.safe_load(section)))
    result = egd("run", recipe, "--out", tmp_path / "out")
    assert result.exit_code == 2, result.output
    assert all(word in result.output for word in [str(recipe), *words]), result.output


def test_a_folder_that_cannot_be_written_is_named(egd: Any, recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for arguments in (("run", recipe, "--out", tmp_path / "file"), ("report", tmp_path / "none", "--out", tmp_path / "file")):
        if arguments[0] == "report":
            assert egd("run", recipe, "--out", tmp_path / "none", "--set", "variants=null").exit_code == 0
        result = egd(*arguments)
        assert result.exit_code == 2, result.output
        assert "--out" in result.output and "choose another folder" in result.output and "Traceback" not in result.output


def test_a_strangers_energy_runs_from_a_recipe(egd: Any, recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\n"
        "from typing import Any\n"
        "@dataclass\n"
        "class Slope:\n"
        "    denoiser: Any\n"
        "    beta: float\n"
        "    height: float = 0.0\n"
        "    def __call__(self, x, t, c=None):\n"
        "        return self.beta * self.height * x.sum(1)\n"
    )
    energy = f"{{name: '{tmp_path}/mine.py:Slope', height: 2}}"
    result = egd("run", recipe, "--out", tmp_path / "out", "--set", f"guidance.energy={energy}")
    assert result.exit_code == 0, result.output
    summary = json.loads((tmp_path / "out" / SEED0 / "summary.json").read_text())
    assert summary["policies"]["guided@1"]["episodes"] == 2


def test_list_names_every_component_and_recipe(egd: Any) -> None:
    output = egd("list").output
    for name in (
        "vp_linear",
        "support_samples",
        "first_order",
        "dps",
        "monte_carlo",
        "analytic",
        "mse",
        "rescaled",
        "residual",
    ):
        assert name in output
    assert "aepo_adroit.yaml" in output
