from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import Tensor

from egd.checkpoint import load_checkpoint
from egd.errors import UserError
from egd.mixtures import GaussianMixture
from egd.networks import NoiseMLP
from egd.phases import Phase, Progress, run_phase, seed_of
from egd.progress import Reporter
from egd.runs import RunFolder
from egd.saved import settle
from egd.schedules import VPLinear
from egd.store import Store
from egd.training import DenoiserLearner, Fit, Metrics

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
    with pytest.raises(UserError, match="loss is not finite at step 2; lower the phase's lr") as info:
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
    def train(made_of: str, die_at: int | None = None) -> Phase:
        phase = Phase("first", STEPS, learner(die_at), made_of=made_of)
        settle(folder)
        run_phase(phase, folder, quiet(), seed=3, device="cpu", checkpoint_every=5, log_every=2)
        return phase

    folder, store = opened(tmp_path / "run"), Store(tmp_path / "store")
    with pytest.raises(PowerCut):
        train(began, die_at=14)
    store.put(train("same"), folder)
    assert len(list(store.path.glob("*.safetensors"))) == kept
