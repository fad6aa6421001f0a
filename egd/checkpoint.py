"""Checkpoints: safetensors files written atomically. Loading one never executes code."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from egd.errors import UserError


def write_atomic(path: Path, data: bytes) -> None:
    """Write so that a reader, or a run after a power cut, finds the old content or the new, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f"{path.name}.{os.getpid()}.part")
    with scratch.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(scratch, path)


def save_checkpoint(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Flat tensors and JSON-able ``meta`` to one safetensors file."""
    flat = {name: t.detach().cpu().clone(memory_format=torch.contiguous_format) for name, t in tensors.items()}
    write_atomic(path, save(flat, {"egd": json.dumps(meta)}))


def load_checkpoint(path: Path, device: torch.device | str = "cpu") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The inverse of ``save_checkpoint``. UserError when the file is not one."""
    with _opened(path, device) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return tensors, read_meta(path)


def read_meta(path: Path) -> dict[str, Any]:
    """A checkpoint's ``meta`` alone. UserError when the file is not one."""
    with _opened(path, "cpu") as file:
        meta: dict[str, Any] = json.loads((file.metadata() or {})["egd"])
    return meta


@contextmanager
def _opened(path: Path, device: torch.device | str) -> Iterator[Any]:
    try:
        with safe_open(path, "pt", device=str(device)) as file:
            yield file
    except (SafetensorError, KeyError, OSError) as error:
        raise UserError(f"{path} is not a checkpoint of egd ({error}); remove it and run again") from error


def prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Put a group of tensors under a prefix."""
    return {f"{prefix}.{name}": t for name, t in tensors.items()}


def group(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take the group under a prefix out again."""
    head = prefix + "."
    return {name.removeprefix(head): t for name, t in tensors.items() if name.startswith(head)}


def optimiser_state(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimiser's tensors, flat: '<parameter index>.<name>'. Its settings come from the recipe, not from here."""
    state = optimiser.state_dict()["state"]
    return {f"{i}.{name}": torch.as_tensor(v) for i, slots in state.items() for name, v in slots.items()}


def load_optimiser(optimiser: torch.optim.Optimizer, state: Mapping[str, Tensor]) -> None:
    """The inverse of ``optimiser_state``."""
    slots: dict[int, dict[str, Tensor]] = {}
    for key, value in state.items():
        index, _, name = key.partition(".")
        slots.setdefault(int(index), {})[name] = value
    optimiser.load_state_dict({"state": slots, "param_groups": optimiser.state_dict()["param_groups"]})
