"""The state of one run's phase in training: its progress, its random numbers, and the means of its metrics."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor

from egd.checkpoint import group, prefixed
from egd.errors import UserError
from egd.runs.folder import not_finite
from egd.runs.phase import Phase, PhaseRun, Progress, key_of, seed_of
from egd.runs.phase_files import load_phase, not_finite_in, save_phase
from egd.runs.progress import Bar, Reporter
from egd.runs.restoring import check_notes, fill, restore_generator, unfit
from egd.runs.stopping import at_once
from egd.training.divergence import largest_weight
from egd.training.learners import Metrics

REMEDY = "lower the phase's lr, or look for outliers in the data"


@dataclass(eq=False)
class PhaseState:
    """State of one run's phase in training."""

    run: PhaseRun
    generator: torch.Generator
    progress: Progress
    recent: Recent
    error: Exception | None = None
    settings: str = ""
    warned: set[str] = field(default_factory=set)

    def took(self, metrics: Metrics) -> None:
        """Record one step with these metrics."""
        self.recent.add(metrics)
        self.progress.step += 1

    @property
    def phase(self) -> Phase:
        """The phase that is trained."""
        return self.run.phase

    @property
    def finished(self) -> bool:
        """Whether all steps are done, and the last result of the hook is there."""
        noted = {note["step"] for note in self.progress.notes}
        step = self.progress.step
        return step >= self.phase.steps and (step in noted or not self.phase.note_at(step))

    @staticmethod
    def restore(run: PhaseRun, device: torch.device | str) -> PhaseState:
        """Restore the state of a run from its checkpoint, or begin at step 0 where there is none."""
        generator = torch.Generator(device).manual_seed(seed_of(run.seed, run.phase.name))
        state = PhaseState(run, generator, Progress(), Recent())
        with failing(state):
            state.settings = run.folder.settings()
            state.progress = _restore(run, generator, state.recent, device)
        return state

    def save(self) -> None:
        """Write a checkpoint. Raises UserError for a tensor that is not finite."""
        phase, progress = self.phase, self.progress
        tensors = {
            **prefixed("learner", phase.learner.state()),
            **prefixed("recent", self.recent.sums),
            "generator": self.generator.get_state(),
        }
        if bad := not_finite_in(tensors):
            raise UserError(f"{bad.removeprefix('learner.')} is not finite at step {progress.step}; {REMEDY}", key=phase.name)
        about = {"settings": self.settings, "counts": dict(self.recent.counts), **asdict(progress)}
        save_phase(self.run.folder, phase.name, tensors, about)

    def log(self, bar: Bar, vitals: Mapping[str, float]) -> None:
        """Write a row of the metrics. Raises UserError for a mean that is not finite."""
        means, step = self.recent.take(), self.progress.step
        if bad := [name for name, value in means.items() if not math.isfinite(value)]:
            where = f"at step {step}; {self._last_good()}"
            raise UserError(f"{', '.join(bad)} is not finite {where}; {REMEDY}", key=self.phase.name)
        self.run.folder.log({"phase": self.phase.name, "step": step, **means, **vitals})
        loss = next((f"{k} {v:.4g}" for k, v in means.items() if k.endswith("loss")), "")
        bar.advance(step - bar.done, loss)

    def check_vitals(self, reporter: Reporter) -> dict[str, float]:
        """Return the phase's vitals, with one warning for each beyond its warning level. Raises UserError for one beyond its
        limit.
        """
        phase, step = self.phase, self.progress.step
        found = largest_weight(phase.learner.state())
        if phase.vitals is not None:
            with torch.no_grad():
                found |= phase.vitals()
        values = {name: float(vital.value) for name, vital in found.items()}
        for name, vital in found.items():
            said = f"{name} is {values[name]:.3g} at step {step}"
            if not values[name] <= vital.stop:
                raise UserError(
                    f"{said}, beyond {vital.stop:.3g}: training diverges; {self._last_good()}; {vital.remedy}", key=phase.name
                )
            if values[name] > vital.warn and name not in self.warned:
                self.warned.add(name)
                reporter.warn(f"{self.run.folder.path}, {phase.name}: {said}, beyond {vital.warn:.3g}; {vital.remedy}")
        return values

    def note_if_due(self) -> None:
        """Call the hook where this step is due and has no result yet, and save its result."""
        phase, progress = self.phase, self.progress
        noted = {note["step"] for note in progress.notes}
        if self.error is None and phase.note_at(progress.step) and progress.step not in noted:
            with at_once():
                self._note()
            if progress.step:
                self.save()

    def _note(self) -> None:
        if self.phase.hook is not None:
            note = {"step": self.progress.step, **self.phase.hook(self.progress.step)}
            if bad := not_finite(note):
                raise UserError(f"{', '.join(bad)} is not finite at step {self.progress.step}; {REMEDY}", key=self.phase.name)
            self.progress.notes.append(note)

    def _last_good(self) -> str:
        """Describe the checkpoint from which training can go on, for an error message."""
        path = self.run.folder.checkpoint(self.phase.name)
        if not path.exists():
            return "there is no checkpoint of this phase yet"
        return f"the last good checkpoint is of step {load_phase(path)[1].step} ({path})"


def _restore(run: PhaseRun, generator: torch.Generator, recent: Recent, device: torch.device | str) -> Progress:
    path = run.folder.checkpoint(run.phase.name)
    if not path.exists():
        return Progress(made=key_of(run.phase.cache_key))
    tensors, meta = load_phase(path, device)
    if meta.step > run.phase.steps:
        raise unfit(path, f"it is of step {meta.step}, and the phase has {run.phase.steps}")
    fill(run.phase, tensors, str(path))
    try:
        recent.load(group("recent", tensors), meta.counts)
    except ValueError as error:
        raise unfit(path, str(error)) from error
    restore_generator(generator, tensors.get("generator"), seed_of(run.seed, f"{run.phase.name}/{meta.step}"), str(path))
    check_notes(run.phase, meta, path)
    made = key_of(run.phase.cache_key)
    return Progress(meta.step, meta.seconds, meta.notes, made if meta.made == made else "")


@contextmanager
def failing(*states: PhaseState) -> Iterator[None]:
    """Record an exception as the error of these runs, so that other runs go on."""
    try:
        yield
    except Exception as error:
        for state in states:
            state.error = error


class Recent:
    """Means of the metrics since the last call of ``take``, each over the steps that had it. Sums are kept on the device, so
    that no step waits for the host.
    """

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: Counter[str] = Counter()

    def add(self, metrics: Metrics) -> None:
        """Add the metrics of a step."""
        for name, value in metrics.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value.detach().clone()
        self.counts.update(metrics.keys())

    def load(self, sums: Mapping[str, Tensor], counts: Mapping[str, int]) -> None:
        """Restore saved sums in the order of ``counts``, in which the metrics first came: a file of tensors sorts them. Raises
        ValueError where sums and counts are not of the same metrics.
        """
        if sums.keys() != counts.keys():
            raise ValueError(f"sums of {sorted(sums)} and counts of {sorted(counts)} are not of the same metrics")
        self.sums, self.counts = {name: sums[name] for name in counts}, Counter(counts)

    def take(self) -> dict[str, float]:
        """Return the means, and begin anew."""
        means = {name: float(total) / self.counts[name] for name, total in self.sums.items()}
        self.sums, self.counts = {}, Counter()
        return means
