"""Training a learner for a number of steps; a kill at any point costs only the steps since the last checkpoint."""

from __future__ import annotations

import hashlib
import json
import math
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import BaseModel, TypeAdapter, ValidationError
from torch import Tensor

from egd.errors import UserError
from egd.runs.checkpoint import group, prefixed
from egd.runs.folder import RunFolder, not_finite
from egd.runs.phase_files import Meta, load_phase, not_finite_in, save_phase
from egd.runs.progress import Bar, Reporter
from egd.runs.stopping import at_once, between_steps, told
from egd.samplers.watching import named
from egd.tensors import isolated_rng
from egd.training.batched import BatchedLearner, NotBatchable
from egd.training.divergence import Vitals, largest_weight
from egd.training.learners import Learner, Metrics, computing_of

MINUTES = 5.0
UNFIT = (
    "remove it, and summary.json if there is one, and go on with egd run --resume: the phase goes on from the checkpoint "
    "before it, or is trained anew; or train in another folder (--out)"
)
REMEDY = "lower the phase's lr, or look for outliers in the data"
GENERATOR_STATES = ((16,), (5056,))
"""Shapes of the state of a random number generator on a GPU and on a CPU."""

Hook = Callable[[int], dict[str, Any]]
Made = TypeVar("Made")


@dataclass(frozen=True)
class Phase:
    """Training of ``learner`` for ``steps`` updates, under a name that is unique in the run.

    ``hook(step)`` is called every ``hook_every`` steps, before the first step too with ``hook_first``, and its results are
    kept; ``note`` is the type of a result with its ``step``. ``cache_key`` is a JSON value of all that determines the outcome:
    a phase of another run with an equal key can replace this one (``egd.runs.store``); None forbids that. ``checkpoint_every``
    is the interval of checkpoints in steps where they are large; 0 means the interval of all phases. ``vitals`` are checked
    whenever a checkpoint is due by its step.
    """

    name: str
    steps: int
    learner: Learner
    hook: Hook | None = None
    hook_every: int = 0
    note: type[BaseModel] | None = None
    cache_key: Any = None
    checkpoint_every: int = 0
    hook_first: bool = False
    vitals: Vitals | None = None

    def note_at(self, step: int) -> bool:
        """Return whether the hook is called at this step."""
        if self.hook is None or step == 0:
            return self.hook is not None and self.hook_first
        return self.hook_every > 0 and step % self.hook_every == 0


@dataclass
class Progress:
    """Progress of a phase: what its checkpoint holds beside tensors."""

    step: int = 0
    seconds: float = 0.0
    notes: list[dict[str, Any]] = field(default_factory=list)
    made: str = ""
    """The digest of the phase's cache key; empty where the phase began under another key."""


def key_of(cache_key: Any) -> str:
    """Return the digest of a JSON value; the order of keys does not matter."""
    return hashlib.blake2b(json.dumps(cache_key, sort_keys=True).encode(), digest_size=16).hexdigest()


def seed_of(seed: int, name: str) -> int:
    """Derive the seed of a named part of a run, which does not depend on how many random numbers other parts draw."""
    return zlib.crc32(f"{seed}/{name}".encode())


def fresh(seed: int, name: str, make: Callable[[], Made]) -> Made:
    """Make an object, such as a network, with random numbers that depend on the seed and the name alone."""
    with isolated_rng(seed_of(seed, name)):
        return make()


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


@dataclass(frozen=True)
class PhaseRun:
    """A phase of one run, with the run's folder and seed."""

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
    checkpoint_minutes: float = MINUTES,
) -> list[Progress | Exception]:
    """Train the same phase of many runs, and return the progress of each, or the exception that ended it.

    Runs at the same step are trained together where their learners allow it, the others in turn. Every run has its own
    checkpoints and metrics, as if it had been trained alone. A run that fails, as by a metric that is not finite, does not stop
    the others.
    """
    states = [_Run.restore(run, device) for run in runs]
    unfinished = [s for s in states if s.error is None and not s.finished]
    for together, learner in _groups(unfinished):
        _train(together, learner, reporter, _title(together, states), checkpoint_every, log_every, checkpoint_minutes)
    return [state.progress if state.error is None else state.error for state in states]


def _groups(states: Sequence[_Run]) -> Iterator[tuple[list[_Run], BatchedLearner | None]]:
    """Yield groups of runs that take their steps together, each with its batched learner, and single runs with None. A learner
    is made when its group's turn comes.
    """
    alike: dict[tuple[int, int], list[_Run]] = {}
    for state in states:
        alike.setdefault((state.phase.steps, state.progress.step), []).append(state)
    for together in alike.values():
        learner = _stacked(together)
        yield from [(together, learner)] if learner is not None else [([state], None) for state in together]


def _title(together: Sequence[_Run], all_of_them: Sequence[_Run]) -> str:
    """Return the title of a progress bar: the phase, and its runs where there are several."""
    name, count = together[0].phase.name, len(all_of_them)
    if count == 1:
        return name
    label = f"{len(together)} runs" if len(together) > 1 else f"run {all_of_them.index(together[0]) + 1} of {count}"
    return f"{name}, {label}"


def _stacked(states: Sequence[_Run]) -> BatchedLearner | None:
    compiled = any(computing_of(s.phase.learner).compile for s in states)
    many = len(states) > 1 and states[0].generator.device.type == "cuda"  # on a CPU only a compiled batch is faster
    if many or compiled:
        with suppress(NotBatchable):
            return BatchedLearner([s.phase.learner for s in states], [s.generator for s in states])
    return None


def _train(
    states: list[_Run],
    learner: BatchedLearner | None,
    reporter: Reporter,
    title: str,
    checkpoint_every: int,
    log_every: int,
    checkpoint_minutes: float,
) -> None:
    phase, progress = states[0].phase, states[0].progress
    for state in states:
        with _failing(state):
            _note_if_due(state)
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
                    with _failing(state):
                        state.progress.seconds = seconds + (time.perf_counter() - started) / len(states)
                        _book(state, bar, reporter, log=log, look=planned, save=save)
            for state in states if save else ():  # all are saved by now: where a hook is interrupted, no run repeats steps
                with _failing(state):
                    _note_if_due(state)
            saved = time.monotonic() if save else saved


def _book(state: _Run, bar: Bar, reporter: Reporter, *, log: bool, look: bool, save: bool) -> None:
    if log:
        _log(state, bar, _looked_at(state, reporter) if look else {})
    if save:
        _save(state)


def _note_if_due(state: _Run) -> None:
    """Call the hook where this step is due and has no result yet, and save its result."""
    phase, progress = state.phase, state.progress
    if state.error is None and phase.note_at(progress.step) and all(note["step"] != progress.step for note in progress.notes):
        with at_once():
            _note(state)
        if progress.step:
            _save(state)


def _note(state: _Run) -> None:
    if state.phase.hook is not None:
        note = {"step": state.progress.step, **state.phase.hook(state.progress.step)}
        if bad := not_finite(note):
            raise UserError(f"{', '.join(bad)} is not finite at step {state.progress.step}; {REMEDY}", key=state.phase.name)
        state.progress.notes.append(note)


@contextmanager
def _failing(*states: _Run) -> Iterator[None]:
    """Record an exception as the error of these runs, so that other runs go on."""
    try:
        yield
    except Exception as error:
        for state in states:
            state.error = error


def _step(states: list[_Run], learner: BatchedLearner | None) -> BatchedLearner | None:
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
            with _failing(state):
                state.took(state.phase.learner.update(state.generator))
    return None


def load_trained(phase: Phase, folder: RunFolder, device: torch.device | str) -> None:
    """Load what a run has trained into a phase's learner. Raises UserError where the run has not finished the phase, or
    finished it with settings other than those in its config.yaml.
    """
    path = folder.checkpoint(phase.name)
    finish = f"finish it with egd run --resume, after {folder.summary} is removed if there is one"
    if not path.exists():
        raise UserError(f"{folder.path} has no checkpoint of its phase '{phase.name}'; {finish}")
    tensors, meta = load_phase(path, device)
    if meta.step != phase.steps:
        raise UserError(f"{path} is of step {meta.step}, and the phase has {phase.steps}; {finish}")
    if meta.settings != folder.settings():
        raise UserError(f"{path} was made with other settings than {folder.config} has: it was edited; put back what it was")
    _fill(phase, tensors, str(path))


@dataclass(eq=False)
class _Run:
    """State of one run's phase in training."""

    run: PhaseRun
    generator: torch.Generator
    progress: Progress
    recent: _Recent
    error: Exception | None = None
    settings: str = ""
    warned: set[str] = field(default_factory=set)

    def took(self, metrics: Metrics) -> None:
        """Record one step with these metrics."""
        self.recent.add(metrics)
        self.progress.step += 1

    @property
    def phase(self) -> Phase:
        return self.run.phase

    @property
    def finished(self) -> bool:
        noted = {note["step"] for note in self.progress.notes}
        step = self.progress.step
        return step >= self.phase.steps and (step in noted or not self.phase.note_at(step))

    @staticmethod
    def restore(run: PhaseRun, device: torch.device | str) -> _Run:
        generator = torch.Generator(device).manual_seed(seed_of(run.seed, run.phase.name))
        state = _Run(run, generator, Progress(), _Recent())
        with _failing(state):
            state.settings = run.folder.settings()
            state.progress = _restore(run, generator, state.recent, device)
        return state


def _restore(run: PhaseRun, generator: torch.Generator, recent: _Recent, device: torch.device | str) -> Progress:
    path = run.folder.checkpoint(run.phase.name)
    if not path.exists():
        return Progress(made=key_of(run.phase.cache_key))
    tensors, meta = load_phase(path, device)
    if meta.step > run.phase.steps:
        raise _unfit(path, f"it is of step {meta.step}, and the phase has {run.phase.steps}")
    _fill(run.phase, tensors, str(path))
    try:
        recent.load(group("recent", tensors), meta.counts)
    except ValueError as error:
        raise _unfit(path, str(error)) from error
    _restore_generator(generator, tensors.get("generator"), seed_of(run.seed, f"{run.phase.name}/{meta.step}"), str(path))
    check_notes(run.phase, meta, path)
    made = key_of(run.phase.cache_key)
    return Progress(meta.step, meta.seconds, meta.notes, made if meta.made == made else "")


def check_notes(phase: Phase, meta: Meta, path: Path) -> None:
    """Check the hook's results in a checkpoint. Raises UserError where they are of other steps or of another form."""
    due = [step for step in range(meta.step + 1) if phase.note_at(step)]
    found = [note.get("step") for note in meta.notes]
    if found not in (due, due[:-1] if due and due[-1] == meta.step else due):  # a checkpoint is saved before the hook is called
        raise _unfit(path, f"it has results of steps {found}, and they are due at {due}")
    try:
        if phase.note is not None:
            TypeAdapter(list[phase.note]).validate_python(meta.notes)  # type: ignore[name-defined]
    except ValidationError as error:
        first = error.errors()[0]
        raise _unfit(path, f"a result of its steps is damaged ({'.'.join(map(str, first['loc']))}: {first['msg']})") from error


def _restore_generator(generator: torch.Generator, saved: Tensor | None, seed: int, path: str) -> None:
    """Restore the generator's state. The generator is seeded with ``seed`` where the state is of another kind of device, whose
    random numbers cannot be continued here.
    """
    if saved is None or saved.dtype != torch.uint8 or saved.shape not in GENERATOR_STATES:
        raise _unfit(path, "it holds no state of a random number generator")
    if saved.shape != generator.get_state().shape:
        generator.manual_seed(seed)
        return
    try:
        generator.set_state(saved.cpu())
    except RuntimeError as error:
        raise _unfit(path, str(error)) from error


def check_fits(phase: Phase, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Raise UserError, leaving the learner unchanged, where a checkpoint does not fit the phase."""
    before = {name: tensor.detach().clone() for name, tensor in phase.learner.state().items()}
    try:
        _fill(phase, tensors, str(path))
        _restore_generator(torch.Generator(), tensors.get("generator"), 0, str(path))
    except UserError:
        phase.learner.load(before)
        raise


def _fill(phase: Phase, tensors: Mapping[str, Tensor], path: str) -> None:
    """Load the learner, and check that its state then equals the tensors in names, types, shapes and values. Raises UserError
    where it does not, or where a tensor is not finite.
    """
    if bad := not_finite_in(tensors):
        raise UserError(f"{path} is of no use: its tensor {bad} is not finite; remove it and run again", key=phase.name)
    wanted = group("learner", tensors)
    strange = [name for name in tensors if name.partition(".")[0] not in ("learner", "recent", "generator")]
    try:
        phase.learner.load(dict(wanted))
        found = phase.learner.state()
        strange += [name for name in sorted({*wanted, *found}) if not _equal(wanted.get(name), found.get(name))]
    except (RuntimeError, LookupError, ValueError, TypeError, AttributeError) as error:
        raise _unfit(path, str(error).partition("\n")[0]) from error
    if strange:
        raise _unfit(path, f"its tensor {strange[0]} is not one of theirs")


def _unfit(path: Path | str, why: str) -> UserError:
    return UserError(f"{path} does not fit these settings: {why}; {UNFIT}")


def _equal(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None or one.dtype != other.dtype:
        return False
    return torch.allclose(one.cpu(), other.cpu(), rtol=0, atol=0, equal_nan=True) if one.shape == other.shape else False


def _save(state: _Run) -> None:
    phase, progress = state.phase, state.progress
    tensors = {
        **prefixed("learner", phase.learner.state()),
        **prefixed("recent", state.recent.sums),
        "generator": state.generator.get_state(),
    }
    if bad := not_finite_in(tensors):
        raise UserError(f"{bad.removeprefix('learner.')} is not finite at step {progress.step}; {REMEDY}", key=phase.name)
    about = {"step": progress.step, "seconds": progress.seconds, "notes": progress.notes, "counts": dict(state.recent.counts)}
    save_phase(state.run.folder, phase.name, tensors, {**about, "settings": state.settings, "made": progress.made})


def _log(state: _Run, bar: Bar, vitals: Mapping[str, float]) -> None:
    means, step = state.recent.take(), state.progress.step
    if bad := [name for name, value in means.items() if not math.isfinite(value)]:
        raise UserError(f"{', '.join(bad)} is not finite at step {step}; {_last_good(state)}; {REMEDY}", key=state.phase.name)
    state.run.folder.log({"phase": state.phase.name, "step": step, **means, **vitals})
    loss = next((f"{k} {v:.4g}" for k, v in means.items() if k.endswith("loss")), "")
    bar.advance(step - bar.done, loss)


def _looked_at(state: _Run, reporter: Reporter) -> dict[str, float]:
    """Return the phase's vitals. Raises UserError for one beyond its limit, and warns once of each that is beyond its warning
    level.
    """
    phase, step = state.phase, state.progress.step
    found = largest_weight(phase.learner.state())
    if phase.vitals is not None:
        with torch.no_grad():
            found |= phase.vitals()
    values = {name: float(vital.value) for name, vital in found.items()}
    for name, vital in found.items():
        said = f"{name} is {values[name]:.3g} at step {step}"
        if not values[name] <= vital.stop:
            raise UserError(
                f"{said}, beyond {vital.stop:.3g}: training diverges; {_last_good(state)}; {vital.remedy}", key=phase.name
            )
        if values[name] > vital.warn and name not in state.warned:
            state.warned.add(name)
            reporter.warn(f"{state.run.folder.path}, {phase.name}: {said}, beyond {vital.warn:.3g}; {vital.remedy}")
    return values


def _last_good(state: _Run) -> str:
    """Describe the checkpoint from which training can go on, for an error message."""
    path = state.run.folder.checkpoint(state.phase.name)
    if not path.exists():
        return "there is no checkpoint of this phase yet"
    return f"the last good checkpoint is of step {load_phase(path)[1].step} ({path})"


class _Recent:
    """Means of the metrics since the last call of ``take``, each over the steps that had it. Sums are kept on the device, so
    that no step waits for the host.
    """

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: Counter[str] = Counter()

    def add(self, metrics: Metrics) -> None:
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
        means = {name: float(total) / self.counts[name] for name, total in self.sums.items()}
        self.sums, self.counts = {}, Counter()
        return means
