"""A run that is told to end saves what it has, and goes on from there as if it had never been told."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import typer

from egd.checkpoint import load_checkpoint
from egd.cli.terminal import resumable, user_errors
from egd.runs.folder import RunFolder
from egd.runs.phase import Phase
from egd.runs.phase_files import settle
from egd.runs.phases import run_phase
from egd.runs.stopping import Stopped, between_steps, exit_code, stoppable, told
from egd.training.learners import Metrics
from tests.egd.test_phases import STEPS, Mortal, learner, opened, quiet, weights


class Told(Mortal):
    """Is told to end in its ``at``-th update."""

    at: int | None = None

    def update(self, generator: torch.Generator) -> Metrics:
        if self.updates + 1 == self.at:
            signal.raise_signal(signal.SIGTERM)
        metrics = super().update(generator)
        return {**metrics, "also": metrics["loss"] / 3}  # a file of tensors has it before the loss, a row after


def train(folder: RunFolder, at: int | None = None, hook_at: int | None = None, **settings: Any) -> int:
    """A phase, told to end in an update or a hook; how many updates it took."""
    base = learner()
    one = Told(base.fit, base.schedule, base.sample, batch=8)
    one.at = at

    def hook(step: int) -> dict[str, float]:
        if step == hook_at:
            signal.raise_signal(signal.SIGTERM)
        return {"weight": next(one.fit.model.parameters()).sum().item()}

    settle(folder)
    phase = Phase("one", STEPS, one, hook, hook_every=7)
    run_phase(phase, folder, quiet(), seed=3, device="cpu", **{"checkpoint_every": 5, "log_every": 2, **settings})
    return one.updates


@pytest.fixture(autouse=True)
def handled() -> Iterator[None]:
    with stoppable():
        yield


def assert_same(one: RunFolder, other: RunFolder) -> None:
    first, second = weights(one, "one"), weights(other, "one")
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
    assert one.metrics.read_bytes() == other.metrics.read_bytes()
    notes = [load_checkpoint(folder.checkpoint("one"))[1]["notes"] for folder in (one, other)]
    assert notes[0] == notes[1]


@pytest.mark.parametrize("at", [1, 3, 6, 7, 22, 23])
def test_the_step_is_finished_and_saved(tmp_path: Path, at: int) -> None:
    whole, stopped = opened(tmp_path / "whole"), opened(tmp_path / "stopped")
    train(whole)
    with pytest.raises(Stopped):
        train(stopped, at=at)
    assert load_checkpoint(stopped.checkpoint("one"))[1]["step"] == at
    assert exit_code() == 143
    with stoppable():
        assert train(stopped) == STEPS - at
    assert_same(whole, stopped)


def test_an_evaluation_in_mid_training_is_left_at_once_and_is_all_that_is_repeated(tmp_path: Path) -> None:
    whole, stopped = opened(tmp_path / "whole"), opened(tmp_path / "stopped")
    train(whole)
    with pytest.raises(Stopped):
        train(stopped, hook_at=14)
    assert [note["step"] for note in load_checkpoint(stopped.checkpoint("one"))[1]["notes"]] == [7]
    with stoppable():
        assert train(stopped) == STEPS - 14
    assert_same(whole, stopped)


def test_checkpoints_by_time_change_no_result(tmp_path: Path) -> None:
    rare, often = opened(tmp_path / "rare"), opened(tmp_path / "often")
    train(rare)
    train(often, checkpoint_minutes=1e-9)
    assert load_checkpoint(often.previous("one"))[1]["step"] == STEPS - 1
    assert_same(rare, often)


def test_a_checkpoint_by_time_is_gone_on_from(tmp_path: Path) -> None:
    whole, killed = opened(tmp_path / "whole"), opened(tmp_path / "killed")
    train(whole)
    with pytest.raises(Stopped):
        train(killed, at=23, checkpoint_minutes=1e-9)
    killed.checkpoint("one").unlink()  # as if killed before it: the one before it was made by time alone
    with stoppable():
        assert train(killed) == 1
    assert_same(whole, killed)


def test_outside_of_steps_a_signal_ends_at_once_and_a_second_one_is_not_looked_after() -> None:
    with pytest.raises(Stopped):
        signal.raise_signal(signal.SIGTERM)
    assert told()
    ended = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(signal, "raise_signal", ended.append)
        signal.getsignal(signal.SIGTERM)(signal.SIGTERM, None)  # type: ignore[misc, operator]
    assert ended == [signal.SIGTERM] and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_signal_that_came_too_late_for_a_step_still_ends() -> None:
    with pytest.raises(Stopped), between_steps():
        signal.raise_signal(signal.SIGINT)
    assert exit_code() == 130


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("guarded", [user_errors, lambda: resumable("the same command goes on")], ids=["others", "run"])
def test_commands_exit_as_shells_expect(guarded: Any, number: int) -> None:
    with pytest.raises(typer.Exit) as info, guarded():
        signal.raise_signal(number)
    assert info.value.exit_code == 128 + number
