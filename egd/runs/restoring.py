"""Restoring a phase from its checkpoint, once the checkpoint is shown to fit the phase."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from egd.checkpoint import group
from egd.errors import UserError
from egd.runs.folder import RunFolder
from egd.runs.phase import Phase
from egd.runs.phase_files import Meta, load_phase, not_finite_in

UNFIT = (
    "remove it, and summary.json if there is one, and go on with egd run --resume: the phase goes on from the checkpoint "
    "before it, or is trained anew; or train in another folder (--out)"
)
GENERATOR_STATES = ((16,), (5056,))
"""Shapes of the state of a random number generator on a GPU and on a CPU."""


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
    fill(phase, tensors, str(path))


def check_notes(phase: Phase, meta: Meta, path: Path) -> None:
    """Check the hook's results in a checkpoint. Raises UserError where they are of other steps or of another form."""
    due = [step for step in range(meta.step + 1) if phase.note_at(step)]
    found = [note.get("step") for note in meta.notes]
    if found not in (due, due[:-1] if due and due[-1] == meta.step else due):  # a checkpoint is saved before the hook is called
        raise unfit(path, f"it has results of steps {found}, and they are due at {due}")
    try:
        if phase.note is not None:
            TypeAdapter(list[phase.note]).validate_python(meta.notes)  # type: ignore[name-defined]
    except ValidationError as error:
        first = error.errors()[0]
        raise unfit(path, f"a result of its steps is damaged ({'.'.join(map(str, first['loc']))}: {first['msg']})") from error


def restore_generator(generator: torch.Generator, saved: Tensor | None, seed: int, path: str) -> None:
    """Restore the generator's state. The generator is seeded with ``seed`` where the state is of another kind of device, whose
    random numbers cannot be continued here.
    """
    if saved is None or saved.dtype != torch.uint8 or saved.shape not in GENERATOR_STATES:
        raise unfit(path, "it holds no state of a random number generator")
    if saved.shape != generator.get_state().shape:
        generator.manual_seed(seed)
        return
    try:
        generator.set_state(saved.cpu())
    except RuntimeError as error:
        raise unfit(path, str(error)) from error


def check_fits(phase: Phase, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Raise UserError, leaving the learner unchanged, where a checkpoint does not fit the phase."""
    before = {name: tensor.detach().clone() for name, tensor in phase.learner.state().items()}
    try:
        fill(phase, tensors, str(path))
        restore_generator(torch.Generator(), tensors.get("generator"), 0, str(path))
    except UserError:
        phase.learner.load(before)
        raise


def fill(phase: Phase, tensors: Mapping[str, Tensor], path: str) -> None:
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
        raise unfit(path, str(error).partition("\n")[0]) from error
    if strange:
        raise unfit(path, f"its tensor {strange[0]} is not one of theirs")


def unfit(path: Path | str, why: str) -> UserError:
    """Return the error of a checkpoint that does not fit the phase."""
    return UserError(f"{path} does not fit these settings: {why}; {UNFIT}")


def _equal(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None or one.dtype != other.dtype:
        return False
    return torch.allclose(one.cpu(), other.cpu(), rtol=0, atol=0, equal_nan=True) if one.shape == other.shape else False
