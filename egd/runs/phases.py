"""Training of phases: the same phase of one or many runs, which ends as if no process had ever been killed."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import suppress

import torch

from egd.runs.folder import RunFolder
from egd.runs.phase import Phase, PhaseRun, Progress
from egd.runs.phase_state import PhaseState, failing
from egd.runs.progress import Bar, Reporter
from egd.runs.stopping import between_steps, told
from egd.samplers.watching import named
from egd.training.batched import BatchedLearner, NotBatchable
from egd.training.learners import computing_of

MINUTES = 5.0


def run_phase(
    phase: Phase,
    folder: RunFolder,
    reporter: Reporter,
    *,
    seed: int,
    device: torch.device | str,
    checkpoint_every: int,
    log_every: int,
    checkpoint_minutes: float = MINUTES,
) -> Progress:
    """Train a phase to its end, from its checkpoint where there is one, and return its progress. On a CPU the result is
    bit-identical to that of a run that was never killed. Checkpoints are written every ``checkpoint_every`` steps and whenever
    the last is ``checkpoint_minutes`` old; neither affects what a run learns and logs. Raises Stopped, after a checkpoint,
    where the process is told to end.
    """
    run = PhaseRun(phase, folder, seed)
    every = {"checkpoint_every": checkpoint_every, "log_every": log_every}
    (ended,) = run_phases([run], reporter, device=device, checkpoint_minutes=checkpoint_minutes, **every)
    if isinstance(ended, Exception):
        raise ended
    return ended


def run_phases(
    runs: Sequence[PhaseRun],
    reporter: Reporter,
    *,
    device: torch.device | str,
    checkpoint_every: int,
    log_every: int,
    checkpoint_minutes: float = MINUTES,
) -> list[Progress | Exception]:
    """Train the same phase of many runs, and return the progress of each, or the exception that ended it.

    Runs at the same step are trained together where their learners allow it, the others in turn. Every run has its own
    checkpoints and metrics, as if it had been trained alone. A run that fails, as by a metric that is not finite, does not stop
    the others.
    """
    states = [PhaseState.restore(run, device) for run in runs]
    unfinished = [s for s in states if s.error is None and not s.finished]
    for together, learner in _groups(unfinished):
        _train(together, learner, reporter, _title(together, states), checkpoint_every, log_every, checkpoint_minutes)
    return [state.progress if state.error is None else state.error for state in states]


def _groups(states: Sequence[PhaseState]) -> Iterator[tuple[list[PhaseState], BatchedLearner | None]]:
    """Yield groups of runs that take their steps together, each with its batched learner, and single runs with None. A learner
    is made when its group's turn comes.
    """
    at_step: dict[tuple[int, int], list[PhaseState]] = {}
    for state in states:
        at_step.setdefault((state.phase.steps, state.progress.step), []).append(state)
    for together in at_step.values():
        learner = _stacked(together)
        yield from [(together, learner)] if learner is not None else [([state], None) for state in together]


def _title(together: Sequence[PhaseState], all_of_them: Sequence[PhaseState]) -> str:
    """Return the title of a progress bar: the phase, and its runs where there are several."""
    name, count = together[0].phase.name, len(all_of_them)
    if count == 1:
        return name
    label = f"{len(together)} runs" if len(together) > 1 else f"run {all_of_them.index(together[0]) + 1} of {count}"
    return f"{name}, {label}"


def _stacked(states: Sequence[PhaseState]) -> BatchedLearner | None:
    compiled = any(computing_of(s.phase.learner).compile for s in states)
    many = len(states) > 1 and states[0].generator.device.type == "cuda"  # on a CPU only a compiled batch is faster
    if many or compiled:
        with suppress(NotBatchable):
            return BatchedLearner([s.phase.learner for s in states], [s.generator for s in states])
    return None


def _train(
    states: list[PhaseState],
    learner: BatchedLearner | None,
    reporter: Reporter,
    title: str,
    checkpoint_every: int,
    log_every: int,
    checkpoint_minutes: float,
) -> None:
    phase, progress = states[0].phase, states[0].progress
    for state in states:
        with failing(state):
            state.note_if_due()
    started, before = time.perf_counter(), [s.progress.seconds for s in states]
    saved = time.monotonic()
    with reporter.bar(title, phase.steps, progress.step) as bar, between_steps(), named(title):
        ending = False
        step = progress.step
        while step < phase.steps and not ending and any(s.error is None for s in states):
            learner = _step(states, learner)  # a failed run stays in the stack, where it does not affect the others
            step += 1
            planned = phase.note_at(step) or step == phase.steps
            planned = planned or step % (phase.checkpoint_every or checkpoint_every) == 0
            log = planned or step % log_every == 0
            ending = told()
            save = planned or ending or time.monotonic() - saved >= 60 * checkpoint_minutes
            if save and learner is not None:
                learner.unstack()
            for state, seconds in zip(states, before, strict=True):
                if (log or save) and state.error is None:
                    with failing(state):
                        state.progress.seconds = seconds + (time.perf_counter() - started) / len(states)
                        _book(state, bar, reporter, log=log, look=planned, save=save)
            for state in states if save else ():  # all are saved by now: where a hook is interrupted, no run repeats steps
                with failing(state):
                    state.note_if_due()
            saved = time.monotonic() if save else saved


def _book(state: PhaseState, bar: Bar, reporter: Reporter, *, log: bool, look: bool, save: bool) -> None:
    if log:
        state.log(bar, state.check_vitals(reporter) if look else {})
    if save:
        state.save()


def _step(states: list[PhaseState], learner: BatchedLearner | None) -> BatchedLearner | None:
    """Update all runs by one step. Returns the learner for the next step: where the batched step fails, its runs repeat the
    step one by one, and None is returned, since they stay separate from then on.
    """
    before = [] if learner is None else [s.generator.get_state() for s in states]
    try:
        if learner is not None:
            for state, own in zip(states, learner.update(), strict=True):
                state.took(own)
            return learner
    except Exception:  # caused by any one run: each repeats this step alone, and only the faulty run fails
        assert learner is not None
        learner.unstack()
        for state, saved in zip(states, before, strict=True):
            state.generator.set_state(saved)
    for state in states:
        if state.error is None:
            with failing(state):
                state.took(state.phase.learner.update(state.generator))
    return None
