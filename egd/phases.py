"""Training a learner for a number of steps, so that a kill at any point costs only the steps since the last checkpoint."""

from __future__ import annotations

import math
import time
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from egd.batched import BatchedLearner, NotAlike
from egd.checkpoint import group, load_checkpoint, prefixed, save_checkpoint
from egd.computing import Computing
from egd.errors import UserError
from egd.progress import Bar, Reporter
from egd.runs import RunFolder
from egd.training import Learner, Metrics

Hook = Callable[[int], dict[str, Any]]


@dataclass(frozen=True)
class Phase:
    """``learner`` for ``steps`` updates under a name of its own; ``hook(step)`` runs every ``hook_every`` steps and its
    results are kept.
    """

    name: str
    steps: int
    learner: Learner
    hook: Hook | None = None
    hook_every: int = 0


@dataclass
class Progress:
    """How far a phase is; what its checkpoint holds beside tensors."""

    step: int = 0
    seconds: float = 0.0
    notes: list[dict[str, Any]] = field(default_factory=list)


def seed_of(seed: int, name: str) -> int:
    """A seed for one named part of a run: parts do not depend on how many random numbers others drew."""
    return zlib.crc32(f"{seed}/{name}".encode())


def run_phase(
    phase: Phase,
    folder: RunFolder,
    reporter: Reporter,
    *,
    seed: int,
    device: torch.device | str,
    checkpoint_every: int,
    log_every: int,
) -> Progress:
    """Train to the end, from the phase's checkpoint where there is one; bit-identical to a run that was never killed
    (on a CPU).
    """
    run = PhaseRun(phase, folder, seed)
    (progress,) = run_phases([run], reporter, device=device, checkpoint_every=checkpoint_every, log_every=log_every)
    return progress


@dataclass(frozen=True)
class PhaseRun:
    """A phase of one run."""

    phase: Phase
    folder: RunFolder
    seed: int


def run_phases(
    runs: Sequence[PhaseRun],
    reporter: Reporter,
    *,
    device: torch.device | str,
    checkpoint_every: int,
    log_every: int,
) -> list[Progress]:
    """The same phase of many runs: all at once where they are at the same step and their learners allow it, else one after
    the other. Every run keeps its own checkpoint and metrics, those of a run of its own.
    """
    states = [_Run.restore(run, device) for run in runs]
    unfinished = [s for s in states if s.progress.step < s.phase.steps]
    for together in _groups(unfinished):
        _train(*together, reporter, checkpoint_every, log_every)
    return [state.progress for state in states]


def _groups(states: list[_Run]) -> list[tuple[list[_Run], BatchedLearner | None]]:
    """Those that take their steps together, and what takes them."""
    compiled = any(getattr(s.phase.learner, "computing", Computing()).compile for s in states)
    many = len(states) > 1 and states[0].generator.device.type == "cuda"  # a CPU gains by it only when compiled
    if (many or compiled) and len({(s.phase.steps, s.progress.step) for s in states}) == 1:
        with suppress(NotAlike):
            return [(states, BatchedLearner([s.phase.learner for s in states], [s.generator for s in states]))]
    return [([state], None) for state in states]


def _train(
    states: list[_Run], learner: BatchedLearner | None, reporter: Reporter, checkpoint_every: int, log_every: int
) -> None:
    phase, progress = states[0].phase, states[0].progress
    started, before = time.perf_counter(), [s.progress.seconds for s in states]
    title = phase.name if len(states) == 1 else f"{phase.name}, {len(states)} runs"
    with reporter.bar(title, phase.steps, progress.step) as bar:
        while progress.step < phase.steps:
            _step(states, learner)
            note = phase.hook_every > 0 and progress.step % phase.hook_every == 0
            save = note or progress.step % checkpoint_every == 0 or progress.step == phase.steps
            if save and learner is not None:
                learner.unstack()
            for state, seconds in zip(states, before, strict=True):
                if save or progress.step % log_every == 0:
                    _log(state, bar)
                if note and state.phase.hook is not None:
                    state.progress.notes.append({"step": progress.step, **state.phase.hook(progress.step)})
                if save:
                    state.progress.seconds = seconds + (time.perf_counter() - started) / len(states)
                    _save(state)


def _step(states: list[_Run], learner: BatchedLearner | None) -> None:
    metrics = [s.phase.learner.update(s.generator) for s in states] if learner is None else learner.update()
    for state, own in zip(states, metrics, strict=True):
        state.recent.add(own)
        state.progress.step += 1


def restored_metrics_size(folder: RunFolder) -> int:
    """How long the metrics file was at the newest checkpoint: what was written later is written again."""
    sizes = [load_checkpoint(p)[1]["metrics_size"] for p in folder.path.glob("checkpoints/*.safetensors")]
    return max(sizes, default=0)


@dataclass
class _Run:
    """A phase of one run, as far as it is."""

    run: PhaseRun
    generator: torch.Generator
    progress: Progress
    recent: _Recent

    @property
    def phase(self) -> Phase:
        return self.run.phase

    @staticmethod
    def restore(run: PhaseRun, device: torch.device | str) -> _Run:
        generator = torch.Generator(device).manual_seed(seed_of(run.seed, run.phase.name))
        return _Run(run, generator, _restore(run.phase, run.folder, generator, device), _Recent())


def _restore(phase: Phase, folder: RunFolder, generator: torch.Generator, device: torch.device | str) -> Progress:
    path = folder.checkpoint(phase.name)
    if not path.exists():
        return Progress()
    tensors, meta = load_checkpoint(path, device)
    try:
        phase.learner.load(group("learner", tensors))
    except (RuntimeError, KeyError, ValueError) as error:
        raise UserError(f"{path} does not fit these settings: {str(error).splitlines()[0]}") from error
    generator.set_state(tensors["generator"].cpu())
    return Progress(meta["step"], meta["seconds"], meta["notes"])


def _save(state: _Run) -> None:
    folder, progress = state.run.folder, state.progress
    tensors = {**prefixed("learner", state.phase.learner.state()), "generator": state.generator.get_state()}
    meta = {
        "step": progress.step,
        "seconds": progress.seconds,
        "notes": progress.notes,
        "metrics_size": folder.metrics_size(),
    }
    save_checkpoint(folder.checkpoint(state.phase.name), tensors, meta)


def _log(state: _Run, bar: Bar) -> None:
    means, step = state.recent.take(), state.progress.step
    if bad := [name for name, value in means.items() if not math.isfinite(value)]:
        raise UserError(
            f"{', '.join(bad)} is not finite at step {step}; lower the phase's lr, or look for outliers in the data",
            key=state.phase.name,
        )
    state.run.folder.log({"phase": state.phase.name, "step": step, **means})
    loss = next((f"{k} {v:.4g}" for k, v in means.items() if k.endswith("loss")), "")
    bar.advance(step - bar.done, loss)


class _Recent:
    """Means of the metrics since last asked; summed on the device, so that a step never waits for the host."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.count = 0

    def add(self, metrics: Metrics) -> None:
        for name, value in metrics.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value.detach().clone()
        self.count += 1

    def take(self) -> dict[str, float]:
        means = {name: float(total) / self.count for name, total in self.sums.items()}
        self.sums, self.count = {}, 0
        return means
