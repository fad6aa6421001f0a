"""Run folders of strangers whose digests are right: statistics and sizes are looked at before anything is made of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from egd.checkpoint import save_checkpoint
from egd.errors import UserError
from egd.runs import resources
from egd.runs.folder import RunFolder
from rl.data.record import Record, place

NUMBERS = {"dataset_return": 1.0, "episodes": 2, "reward_factor": 1.0, "reward_shift": 0.0}
META: dict[str, Any] = {"source": {"datasets": ["a-v0"]}, "numbers": NUMBERS}
VECTORS = {name: torch.ones(2) for name in ("state_mean", "state_std", "action_low", "action_high")}


def record(tmp_path: Path, vectors: Any = None, meta: Any = None) -> Record | None:
    folder = RunFolder(tmp_path)
    save_checkpoint(place(folder), {**VECTORS, **(vectors or {})}, META if meta is None else meta)
    return Record.read(folder)


def test_a_sound_record_is_read(tmp_path: Path) -> None:
    found = record(tmp_path)
    assert found is not None and found.numbers == NUMBERS and found.source == META["source"]


@pytest.mark.parametrize(
    "meta",
    [
        ["source", "numbers"],
        {**META, "numbers": 5},
        {**META, "source": [1]},
        {**META, "numbers": {**NUMBERS, "dataset_return": "x"}},
        {**META, "numbers": {**NUMBERS, "reward_factor": None}},
        {**META, "numbers": {**NUMBERS, "episodes": -1}},
    ],
)
def test_what_is_noted_is_of_its_types(tmp_path: Path, meta: Any) -> None:
    with pytest.raises(UserError, match="no record of a run's data by this version"):
        record(tmp_path, meta=meta)


@pytest.mark.parametrize(
    "vectors",
    [
        {"state_mean": torch.ones(7)},
        {"state_mean": torch.tensor(1.0)},
        {"state_std": torch.ones(2, dtype=torch.int64)},
        {"state_std": torch.tensor([1.0, torch.nan])},
        {"state_std": torch.zeros(2)},
        {"action_low": torch.full((2,), 3.0)},
    ],
)
def test_statistics_are_vectors_that_fit(tmp_path: Path, vectors: Any) -> None:
    with pytest.raises(UserError, match="not vectors of finite numbers that fit"):
        record(tmp_path, vectors)


def test_memory_is_looked_at_for_one_run_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EGD_MEMORY_GB", "1")
    with pytest.raises(UserError, match=r"denoiser\.width.*GB of memory are needed"):
        resources.check_memory([{"denoiser": {"width": 65536, "blocks": 3, "batch": 1}}], "config.yaml")
    assert resources.check_memory([{"denoiser": {"width": 10, "blocks": 3, "batch": 1}}], "config.yaml") == 6 * 4 * 300
