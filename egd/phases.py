"""Training a learner for a number of steps, so that a kill at any point costs only the steps since the last checkpoint."""

from __future__ import annotations

import math
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from egd.checkpoint import group, load_checkpoint, prefixed, save_checkpoint
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
    generator = torch.Generator(device).manual_seed(seed_of(seed, phase.name))
    progress = _restore(phase, folder, generator, device)
    if progress.step >= phase.steps:
        return progress
    started, before = time.perf_counter(), progress.seconds
    recent = _Recent()
    with reporter.bar(phase.name, phase.steps, progress.step) as bar:
        while progress.step < phase.steps:
            recent.add(phase.learner.update(generator))
            progress.step += 1
            note = phase.hook_every > 0 and progress.step % phase.hook_every == 0
            save = note or progress.step % checkpoint_every == 0 or progress.step == phase.steps
            if save or progress.step % log_every == 0:
                _log(phase, folder, progress, recent, bar)
            if note and phase.hook is not None:
                progress.notes.append({"step": progress.step, **phase.hook(progress.step)})
            if save:
                progress.seconds = before + time.perf_counter() - started
                _save(phase, folder, generator, progress)
    return progress


def restored_metrics_size(folder: RunFolder) -> int:
    """How long the metrics file was at the newest checkpoint: what was written later is written again."""
    sizes = [load_checkpoint(p)[1]["metrics_size"] for p in folder.path.glob("checkpoints/*.safetensors")]
    return max(sizes, default=0)


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


def _save(phase: Phase, folder: RunFolder, generator: torch.Generator, progress: Progress) -> None:
    tensors = {**prefixed("learner", phase.learner.state()), "generator": generator.get_state()}
    meta = {
        "step": progress.step,
        "seconds": progress.seconds,
        "notes": progress.notes,
        "metrics_size": folder.metrics_size(),
    }
    save_checkpoint(folder.checkpoint(phase.name), tensors, meta)


def _log(phase: Phase, folder: RunFolder, progress: Progress, recent: _Recent, bar: Bar) -> None:
    means = recent.take()
    if bad := [name for name, value in means.items() if not math.isfinite(value)]:
        raise UserError(
            f"{', '.join(bad)} is not finite at step {progress.step}; lower the phase's lr, or look for outliers in the data",
            key=phase.name,
        )
    folder.log({"phase": phase.name, "step": progress.step, **means})
    loss = next((f"{k} {v:.4g}" for k, v in means.items() if k.endswith("loss")), "")
    bar.advance(progress.step - bar.done, loss)


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
