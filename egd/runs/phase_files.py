"""The files of a phase in a run folder: its newest checkpoint, the previous one, and its rows of the metrics."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, NonNegativeFloat, NonNegativeInt, PositiveInt, ValidationError
from torch import Tensor

from egd.checkpoint import Damaged, as_bytes, load_checkpoint
from egd.errors import UserError
from egd.files import replacing, sweep, write_to_disk
from egd.runs.folder import RunFolder


class Meta(BaseModel):
    """Metadata of a phase's checkpoint. ``rows`` is the number of the phase's rows in the metrics, and ``metrics`` their
    digest; ``settings`` is the digest of the run's settings. ``counts`` holds the number of steps in every mean that the next
    row will hold. ``store`` is the key of a phase that was taken from the store, ``made`` the key of a phase that was trained
    with the same cache key from its first step on.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    step: NonNegativeInt
    seconds: NonNegativeFloat = 0.0
    notes: list[dict[str, Any]] = []
    rows: NonNegativeInt = 0
    metrics: str = ""
    settings: str = ""
    tensors: NonNegativeInt
    counts: dict[str, PositiveInt] = {}
    store: str | None = None
    made: str = ""


def rows_of(name: str, lines: Sequence[bytes]) -> list[bytes]:
    """Return the lines of the metrics that belong to a phase."""
    return [line for line in lines if _phase_of(line) == name]


def _phase_of(line: bytes) -> str | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    phase = row.get("phase") if isinstance(row, dict) else None
    return phase if isinstance(phase, str) else None


def digest_of_rows(lines: Sequence[bytes]) -> str:
    """Return the digest of lines of the metrics."""
    return hashlib.blake2b(b"".join(lines), digest_size=16).hexdigest()


def save_phase(folder: RunFolder, name: str, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write a checkpoint of the phase; its newest checkpoint becomes the previous one."""
    own = rows_of(name, folder.metrics_lines())
    meta = Meta.model_validate({**about, "tensors": len(tensors), "rows": len(own), "metrics": digest_of_rows(own)})
    newest, previous = folder.checkpoint(name), folder.previous(name)
    with replacing(newest) as scratch:
        write_to_disk(scratch, as_bytes(tensors, meta.model_dump()))
        if newest.exists():
            previous.parent.mkdir(exist_ok=True)
            os.replace(newest, previous)


def load_phase(path: Path, device: torch.device | str = "cpu") -> tuple[dict[str, Tensor], Meta]:
    """Load a checkpoint that ``save_phase`` wrote. Raises Damaged where the file is no such checkpoint."""
    tensors, meta = load_checkpoint(path, device)
    try:
        found = Meta.model_validate(meta)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise Damaged(f"{path} is not the checkpoint of a phase ({where}: {first['msg']}); remove it and run again") from error
    if found.tensors != len(tensors):
        raise Damaged(f"{path} was written with {found.tensors} tensors and has {len(tensors)}; remove it and run again")
    return tensors, found


def not_finite_in(tensors: Mapping[str, Tensor]) -> str | None:
    """Return the name of the first tensor with an entry that is not finite, None without one."""
    return next((name for name, t in tensors.items() if t.is_floating_point() and not bool(t.isfinite().all())), None)


def settle(folder: RunFolder, say: Callable[[str], None] = print) -> None:
    """Prepare a run folder, which no other process writes to, for resuming: keep every phase's newest undamaged checkpoint, and
    the rows of the metrics that it counts. Losses are reported through ``say``. Raises UserError where the run cannot resume.
    """
    sweep(folder.path)
    names = dict.fromkeys(path.stem for path in folder.checkpoints())
    _settle_metrics(folder, {name: _newest(folder, name, say) for name in names}, say)


def _newest(folder: RunFolder, name: str, say: Callable[[str], None]) -> Meta:
    newest, previous = folder.checkpoint(name), folder.previous(name)
    try:
        return load_phase(newest)[1]
    except Damaged as error:
        reason = str(error) if newest.exists() else f"{newest} is gone"
    try:
        meta = load_phase(previous)[1]
    except Damaged:
        raise UserError(
            f"{reason}; there is no other of phase '{name}': with {newest} and {previous} removed, it is trained anew",
            key="--resume",
        ) from None
    os.replace(previous, newest)
    say(f"{reason.partition('; remove')[0]}; phase '{name}' goes on from the checkpoint before it, of step {meta.step}")
    return meta


def _settle_metrics(folder: RunFolder, phases: Mapping[str, Meta], say: Callable[[str], None]) -> None:
    lines, left = folder.metrics_lines(), {}
    for name, meta in phases.items():
        own = rows_of(name, lines)
        if len(own) >= meta.rows and digest_of_rows(own[: meta.rows]) == meta.metrics:
            left[name] = meta.rows
        elif not own:
            say(f"{folder.metrics} has lost the rows of phase '{name}' up to step {meta.step}; the run goes on without them")
        else:
            raise UserError(
                f"{folder.metrics} is not what it was at the checkpoint of phase '{name}', step {meta.step}: it is damaged or "
                "was edited; put back what it was, or remove it to go on without those rows",
                key="--resume",
            )
    kept = []
    for line in lines:
        phase = _phase_of(line)
        if phase is not None and left.get(phase, 0) > 0:
            left[phase] -= 1
            kept.append(line)
    folder.rewrite_metrics(kept)
