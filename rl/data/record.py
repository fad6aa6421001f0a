"""Record of a run's data: a fingerprint of the datasets, and the statistics that its policy depends on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, FiniteFloat, NonNegativeInt, ValidationError
from torch import Tensor

from egd.checkpoint import load_checkpoint, save_checkpoint
from egd.errors import UserError
from egd.runs.folder import RunFolder
from rl.data.episodes import Episodes
from rl.data.transitions import NUMBERS, VECTORS, Batch, OfflineData, digest_of

ARRAYS = ("observations", "actions", "rewards", "terminations")


def fingerprint(datasets: Sequence[str], episodes: Episodes) -> dict[str, Any]:
    """Return counts and a digest of every array as it was read, which tell these episodes from others of the same datasets."""
    digests = {name: digest_of(*getattr(episodes, name)) for name in ARRAYS}
    counts = {"episodes": len(episodes.lengths), "transitions": int(episodes.lengths.sum())}
    return {"datasets": list(datasets), **counts, **digests}


class _Numbers(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    dataset_return: FiniteFloat
    episodes: NonNegativeInt
    reward_factor: FiniteFloat
    reward_shift: FiniteFloat


class _About(BaseModel):
    model_config = ConfigDict(extra="forbid")
    source: dict[str, Any]
    numbers: _Numbers


ALIKE = (("state_mean", "state_std"), ("state_std", "state_mean"), ("action_low", "action_high"), ("action_high", "action_low"))


REMEDY = "put it back from a copy, or train anew in another folder (egd run CONFIG --out ANOTHER_FOLDER)"


def _fits(vector: Tensor, like: Tensor) -> bool:
    return vector.ndim == 1 and vector.shape == like.shape and vector.dtype == torch.float32 and bool(vector.isfinite().all())


def _absurd(vectors: Mapping[str, Tensor]) -> bool:
    return bool((vectors["state_std"] <= 0).any() or (vectors["action_low"] > vectors["action_high"]).any())


@dataclass(frozen=True)
class Record:
    """Contents of the file ``data.safetensors`` of a run folder."""

    path: Path
    source: Mapping[str, Any]
    vectors: Mapping[str, Tensor]
    numbers: Mapping[str, Any]

    @staticmethod
    def read(folder: RunFolder) -> Record | None:
        """Read the record of a run. Return None for a run older than records; raise UserError for a damaged file."""
        path = place(folder)
        if not path.exists():
            return None
        tensors, meta = load_checkpoint(path)
        try:
            about = _About.model_validate(meta)
        except ValidationError as error:
            raise UserError(
                f"{path} is no record of a run's data by this version of egd ({error.errors()[0]['msg']}); {REMEDY}"
            ) from None
        if {*tensors} != {*VECTORS} or not all(_fits(tensors[name], tensors[like]) for name, like in ALIKE) or _absurd(tensors):
            raise UserError(
                f"{path} is no record of a run's data: its statistics are not vectors of finite numbers that fit; {REMEDY}"
            )
        return Record(path, about.source, tensors, about.numbers.model_dump())

    def compare(self, found: Mapping[str, Any]) -> None:
        """Raise UserError where the data found now differ from the data of the run."""
        changed = [name for name in found if found[name] != self.source.get(name)]
        if not changed:
            return
        counts = [f"{self.source.get(name)} {name} then, {found[name]} now" for name in changed if name in COUNTED]
        others = [name for name in changed if name in ARRAYS]
        differences = "; ".join([*counts, *([f"other {', '.join(others)}"] if others else [])])
        raise UserError(
            f"{self.path.parent} was trained on other data than {', '.join(found['datasets'])} holds now ({differences}). "
            "Put back the dataset that it was trained on (MINARI_DATASETS_PATH names the folder), or train anew on this one: "
            f"egd run {self.path.parent / 'config.yaml'} --out ANOTHER_FOLDER",
            key="data.datasets",
        )

    def applied(self, data: OfflineData) -> OfflineData:
        """Return the data standardised by the run's statistics instead of their own."""
        own = {name: tensor.to(data.state_mean.device) for name, tensor in self.vectors.items()}
        if bad := [name for name, vector in own.items() if vector.shape != getattr(data, name).shape]:
            raise UserError(
                f"{self.path}: {bad[0]} has {len(own[bad[0]])} entries, the data {len(getattr(data, bad[0]))}; {REMEDY}"
            )
        if all(torch.equal(getattr(data, name), own[name]) for name in VECTORS):
            return replace(data, **self.numbers)
        rows, mean, std = data.transitions, own["state_mean"], own["state_std"]
        state, following = ((x * data.state_std + data.state_mean - mean) / std for x in (rows.state, rows.next_state))
        changed: dict[str, Any] = {**own, **self.numbers, "transitions": replace(rows, state=state, next_state=following)}
        return replace(data, **changed, _digests={})

    def alone(self, device: torch.device) -> OfflineData:
        """Return the statistics without any transitions, which suffice to act."""
        own: dict[str, Any] = {name: tensor.to(device) for name, tensor in self.vectors.items()}
        states, actions = (own[name].new_zeros(0, len(own[name])) for name in ("state_mean", "action_low"))
        none = states.new_zeros(0)
        return OfflineData(Batch(states, actions, none, states, none), **own, **self.numbers, source=self.source)


COUNTED = ("episodes", "transitions")


def place(folder: RunFolder) -> Path:
    """Return the path of a run's record."""
    return folder.path / "data.safetensors"


def of_run(folder: RunFolder, data: OfflineData, say: Callable[[str], None]) -> OfflineData:
    """Return the data with the run's statistics. Raises UserError where they are not the data of the run.

    For a run older than records this cannot be checked: the data are returned unchanged, and ``say`` gets a warning.
    """
    record = Record.read(folder)
    if record is None:
        say(
            f"{folder.path} is of a version of egd that kept no record of a run's data: its statistics are taken from the "
            "dataset as it is now, and nothing can tell whether that has changed since"
        )
        return data
    record.compare(data.source)
    return record.applied(data)


def begin(folder: RunFolder, data: OfflineData, say: Callable[[str], None]) -> OfflineData:
    """Return the data for training: with the run's statistics where the run has a record, else unchanged.

    A run without a record writes one; where it already has checkpoints, ``of_run`` warns first.
    """
    if place(folder).exists():
        return of_run(folder, data, say)
    if any((folder.path / "checkpoints").glob("*.safetensors")):
        of_run(folder, data, say)
    numbers = {name: getattr(data, name) for name in NUMBERS}
    vectors = {name: getattr(data, name) for name in VECTORS}
    save_checkpoint(place(folder), vectors, {"source": dict(data.source), "numbers": numbers})
    return data
