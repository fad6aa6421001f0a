from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor

from egd.checkpoint import load_checkpoint
from egd.errors import UserError
from egd.mixtures import GaussianMixture
from egd.networks.mlp import NoiseMLP
from egd.runs import phases
from egd.runs.folder import RunFolder
from egd.runs.phase import Phase, PhaseRun, Progress, seed_of
from egd.runs.phase_files import load_phase, settle
from egd.runs.phases import run_phase, run_phases
from egd.runs.progress import Reporter
from egd.runs.store import Store
from egd.samplers.watching import SamplingWarning, tell
from egd.schedules import VPLinear
from egd.training.batched import BatchedLearner
from egd.training.divergence import Vital
from egd.training.learners import DenoiserLearner, Fit, Metrics

STEPS = 23


class PowerCut(Exception):
    pass


class Mortal(DenoiserLearner):
    """Trains until the power goes, at its ``die_at``-th update."""

    die_at: int | None = None
    updates = 0

    def update(self, generator: torch.Generator) -> Metrics:
        metrics = super().update(generator)
        self.updates += 1
        if self.updates == self.die_at:
            raise PowerCut
        return metrics


def learner(die_at: int | None = None, width: int = 8) -> Mortal:
    torch.manual_seed(1)
    m = GaussianMixture.random(2, 2, seed=0)
    fit = Fit(NoiseMLP(2, width=width, blocks=1), lr=1e-2, steps=STEPS, decay=True, ema=0.9, clip=1.0)
    made = Mortal(fit, VPLinear(), lambda n, g: (m.sample(n, g), None), batch=8)
    made.die_at = die_at
    return made


class Telling(Mortal):
    """Samples as it learns, and not well."""

    def update(self, generator: torch.Generator) -> Metrics:
        tell("samples have left the data's scale")
        return super().update(generator)


def test_a_warning_of_training_names_its_phase(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.open({"seed": 3}, resume=False)
    made = learner()
    made.__class__ = Telling
    with pytest.warns(SamplingWarning, match="^first: samples have left"):
        run(folder, {"first": made})


def quiet() -> Reporter:
    return Reporter(Console(file=io.StringIO(), width=120))


def run(folder: RunFolder, names: dict[str, Mortal], reporter: Reporter | None = None) -> dict[str, Progress]:
    """Every phase in turn, as a job does it: first forget the metrics that no checkpoint knows of."""
    settle(folder)
    progress = {}
    for name, one in names.items():

        def hook(step: int, one: Mortal = one) -> dict[str, float]:
            return {"weight": next(one.fit.model.parameters()).sum().item()}

        phase = Phase(name, STEPS, one, hook, hook_every=7)
        progress[name] = run_phase(phase, folder, reporter or quiet(), seed=3, device="cpu", checkpoint_every=5, log_every=2)
    return progress


def opened(path: Path) -> RunFolder:
    folder = RunFolder(path)
    folder.open({"seed": 3}, resume=True)
    return folder


def weights(folder: RunFolder, name: str) -> dict[str, Tensor]:
    return load_checkpoint(folder.checkpoint(name))[0]


@pytest.mark.parametrize("die_at", [1, 4, 5, 6, 8, 14, 22, 23])
@pytest.mark.parametrize("victim", ["first", "second"])
def test_a_killed_run_that_is_resumed_equals_one_that_was_never_killed(tmp_path: Path, victim: str, die_at: int) -> None:
    whole, killed = opened(tmp_path / "whole"), opened(tmp_path / "killed")
    want = run(whole, {"first": learner(), "second": learner()})
    with pytest.raises(PowerCut):
        run(killed, {name: learner(die_at if name == victim else None) for name in ("first", "second")})
    got = run(killed, {"first": learner(), "second": learner()})
    assert killed.metrics.read_bytes() == whole.metrics.read_bytes()
    for name in ("first", "second"):
        assert got[name].notes == want[name].notes
        assert [note["step"] for note in got[name].notes] == [7, 14, 21]
        a, b = weights(whole, name), weights(killed, name)
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a)


def test_a_resumed_run_repeats_only_the_steps_since_its_checkpoint(tmp_path: Path) -> None:
    folder = opened(tmp_path)
    with pytest.raises(PowerCut):
        run(folder, {"one": learner(13)})
    again = learner()
    progress = run(folder, {"one": again})["one"]
    assert (progress.step, again.updates) == (STEPS, STEPS - 10)
    assert progress.seconds > 0


def test_a_finished_phase_is_restored_without_a_step(tmp_path: Path) -> None:
    folder, first, again = opened(tmp_path), learner(), learner()
    run(folder, {"one": first})
    before = folder.metrics.read_bytes()
    progress = run(folder, {"one": again})["one"]
    assert (again.updates, progress.step) == (0, STEPS)
    assert folder.metrics.read_bytes() == before
    assert all(torch.equal(v, again.state()[k]) for k, v in first.state().items())


def test_the_metrics_known_to_the_checkpoints_end_at_the_newest(tmp_path: Path) -> None:
    folder = opened(tmp_path)
    with pytest.raises(PowerCut):
        run(folder, {"one": learner(), "two": learner(9)})  # its last checkpoint: 7, its last metrics: 8
    lines = folder.metrics_lines()
    settle(folder)
    assert folder.metrics_lines() == lines[:-1]
    assert b'"phase": "two", "step": 7' in lines[-2]


def test_metrics_are_means_since_the_last_line(tmp_path: Path) -> None:
    class Counting:
        count = 0.0

        def update(self, generator: torch.Generator) -> Metrics:
            self.count += 1
            return {"count": torch.tensor(self.count)}

        def state(self) -> dict[str, Tensor]:
            return {"count": torch.tensor(self.count)}

        def load(self, state: dict[str, Tensor]) -> None:
            self.count = float(state["count"])

    folder = opened(tmp_path)
    phase = Phase("count", 5, Counting())
    run_phase(phase, folder, quiet(), seed=0, device="cpu", checkpoint_every=100, log_every=2)
    assert folder.metrics.read_text().splitlines() == [
        '{"phase": "count", "step": 2, "count": 1.5}',
        '{"phase": "count", "step": 4, "count": 3.5}',
        '{"phase": "count", "step": 5, "count": 5.0}',
    ]


def test_phases_of_other_seeds_or_names_draw_other_numbers(tmp_path: Path) -> None:
    assert len({seed_of(s, n) for s in range(3) for n in ("a", "b")}) == 6
    folder = opened(tmp_path)
    run(folder, {"one": learner(), "two": learner()})
    a, b = weights(folder, "one"), weights(folder, "two")
    assert any(not torch.equal(a[key], b[key]) for key in a)


def test_a_checkpoint_of_other_settings_is_refused_by_name(tmp_path: Path) -> None:
    folder = opened(tmp_path)
    run(folder, {"one": learner()})
    with pytest.raises(UserError, match=r"one\.safetensors does not fit these settings: "):
        run(folder, {"one": learner(width=9)})


def test_a_loss_that_is_not_finite_stops_the_phase_and_names_it(tmp_path: Path) -> None:
    broken = learner()
    with torch.no_grad():
        next(broken.fit.module.parameters()).fill_(torch.nan)
    folder = opened(tmp_path)
    with pytest.raises(
        UserError, match="loss is not finite at step 2; there is no checkpoint of this phase yet; lower the phase's lr"
    ) as info:
        run(folder, {"one": broken})
    assert info.value.key == "one"
    assert not folder.checkpoint("one").exists()


class Delayed(Mortal):
    """Reports one thing at every third update only."""

    def update(self, generator: torch.Generator) -> Metrics:
        metrics = super().update(generator)
        return metrics | ({"late": torch.tensor(6.0)} if self.updates % 3 == 0 else {})


def test_a_metric_is_the_mean_over_the_steps_that_have_it(tmp_path: Path) -> None:
    base, folder = learner(), opened(tmp_path)
    run(folder, {"one": Delayed(base.fit, base.schedule, base.sample, batch=8)})
    late = [row["late"] for row in map(json.loads, folder.metrics.read_text().splitlines()) if "late" in row]
    assert set(late) == {6.0}
    assert len(late) == STEPS // 3


def test_the_bar_shows_the_phase_its_steps_and_its_loss(tmp_path: Path) -> None:
    text = io.StringIO()
    run(opened(tmp_path), {"denoiser": learner()}, Reporter(Console(file=text, width=120)))
    last = text.getvalue().splitlines()[-1]
    assert "denoiser" in last and f"{STEPS}/{STEPS}" in last and "loss " in last


def test_a_bar_counts_on_from_where_it_was() -> None:
    with quiet().bar("thing", 10, 4) as bar:
        bar.advance(2)
        assert bar.done == 6
        bar.advance(1, "note")
        assert (bar.done, bar.progress.tasks[0].fields["note"]) == (7, "note")


@pytest.mark.parametrize(("began", "kept"), [("same", 1), ("other", 0)])
def test_a_phase_that_began_as_another_is_not_kept(tmp_path: Path, began: str, kept: int) -> None:
    def train(cache_key: str, die_at: int | None = None) -> Phase:
        phase = Phase("first", STEPS, learner(die_at), cache_key=cache_key)
        settle(folder)
        run_phase(phase, folder, quiet(), seed=3, device="cpu", checkpoint_every=5, log_every=2)
        return phase

    folder, store = opened(tmp_path / "run"), Store(tmp_path / "store")
    with pytest.raises(PowerCut):
        train(began, die_at=14)
    store.put(train("same"), folder)
    assert len(list(store.path.glob("*.safetensors"))) == kept


# -- divergence -------------------------------------------------------------------------------------------------------


class Faulty(DenoiserLearner):
    """Its draws raise an exception from the step ``fails_at`` on."""

    fails_at: int | None = None

    def draw(self, generator: torch.Generator) -> Any:
        if self.fit.step == self.fails_at:
            raise ArithmeticError("a bad batch")
        return super().draw(generator)


class Stepping(BatchedLearner):
    """Steps of the group are those of each learner, as a learner may ask."""

    def update(self) -> list[Metrics]:
        for fit in self.fits:
            fit.step = self.step
        return super().update()


def faulty(seed: int, fails_at: int | None) -> Faulty:
    torch.manual_seed(seed)
    m = GaussianMixture.random(2, 2, seed=0)
    made = Faulty(Fit(NoiseMLP(2, width=8, blocks=1), lr=1e-2, steps=STEPS, ema=0.9), VPLinear(), m_sample(m), batch=8)
    made.fails_at = fails_at
    return made


def m_sample(m: GaussianMixture) -> Any:
    return lambda n, g: (m.sample(n, g), None)


def group_of(root: Path, fails: dict[int, int | None]) -> tuple[list[Any], list[RunFolder]]:
    folders = [opened(root / str(seed)) for seed in fails]
    runs = [
        PhaseRun(Phase("denoiser", STEPS, faulty(seed, at)), folder, seed)
        for (seed, at), folder in zip(fails.items(), folders, strict=True)
    ]
    return run_phases(runs, quiet(), device="cpu", checkpoint_every=5, log_every=2), folders


def test_an_exception_in_a_batched_step_costs_the_run_at_fault_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, alone = group_of(tmp_path / "alone", dict.fromkeys(range(3)))
    monkeypatch.setattr(
        phases, "_stacked", lambda states: Stepping([s.phase.learner for s in states], [s.generator for s in states])
    )
    ended, folders = group_of(tmp_path / "together", {0: None, 1: 8, 2: None})
    assert [type(one) for one in ended] == [Progress, ArithmeticError, Progress]
    assert load_phase(folders[1].checkpoint("denoiser"))[1].step == 5
    for seed in (0, 2):
        a, b = (load_phase(each[seed].checkpoint("denoiser"))[0] for each in (alone, folders))
        assert torch.equal(a["generator"], b["generator"])
        torch.testing.assert_close(a, b)  # up to the order of additions, as in a group without a fault
        rows = [[row["step"] for row in map(json.loads, each[seed].metrics_lines())] for each in (alone, folders)]
        assert rows[0] == rows[1]


def test_the_first_run_of_a_group_may_be_the_one_that_fails(tmp_path: Path) -> None:
    ended, folders = group_of(tmp_path, {0: 3, 1: None})
    assert isinstance(ended[0], ArithmeticError) and ended[1].step == STEPS
    assert load_phase(folders[1].checkpoint("denoiser"))[1].step == STEPS


def test_weights_that_leave_all_scale_end_the_phase_before_they_are_saved(tmp_path: Path) -> None:
    one = learner()
    folder, one.fit.decay = opened(tmp_path), False
    run(folder, {"first": learner()})
    for settings in one.fit.optimiser.param_groups:
        settings["lr"] = settings["initial_lr"] = 1e30
    with pytest.raises(UserError, match=r"largest_weight is 1e\+30 at step 1, beyond 1e\+06: training diverges"):
        run_phase(Phase("one", 1, one), folder, quiet(), seed=0, device="cpu", checkpoint_every=5, log_every=5)
    assert not folder.checkpoint("one").exists()


def test_vitals_are_logged_warned_of_once_and_name_the_last_good_checkpoint(tmp_path: Path) -> None:
    text, folder, one = io.StringIO(), opened(tmp_path), learner()
    sizes = iter([0.5, 2.0, 3.0, 20.0])
    vitals = lambda: {"q_size": Vital(next(sizes), warn=1.0, stop=10.0, remedy="lower critic.lr")}  # noqa: E731
    phase = Phase("critic", STEPS, one, vitals=vitals)
    reporter = Reporter(Console(file=text, width=400))
    with pytest.raises(UserError) as error:
        run_phase(phase, folder, reporter, seed=0, device="cpu", checkpoint_every=5, log_every=5)
    assert "q_size is 20 at step 20, beyond 10: training diverges" in str(error.value)
    assert "the last good checkpoint is of step 15" in str(error.value) and "lower critic.lr" in str(error.value)
    assert text.getvalue().count("q_size is") == 1 and "q_size is 2 at step 10, beyond 1" in text.getvalue()
    rows = [json.loads(line) for line in folder.metrics_lines()]
    assert [(row["step"], row["q_size"]) for row in rows] == [(5, 0.5), (10, 2.0), (15, 3.0)]


def test_how_often_is_logged_and_saved_changes_no_result(tmp_path: Path) -> None:
    found = []
    for i, (log_every, checkpoint_every) in enumerate([(2, 5), (7, 3), (1, 100)]):
        folder = opened(tmp_path / str(i))
        settings = {"log_every": log_every, "checkpoint_every": checkpoint_every}
        run_phase(Phase("one", STEPS, learner()), folder, quiet(), seed=3, device="cpu", **settings)
        found.append(weights(folder, "one"))
    for other in found[1:]:
        assert all(torch.equal(found[0][name], other[name]) for name in found[0])
