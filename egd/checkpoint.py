"""Checkpoints: safetensors files, written atomically with a digest of their content. Loading a checkpoint never executes
code.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from egd.errors import UserError
from egd.files import regular, write_atomic


class Damaged(UserError):
    """A file whose content differs from what was written."""


def save_checkpoint(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Write named tensors and the JSON-serialisable ``meta`` to one safetensors file."""
    write_atomic(path, as_bytes(tensors, meta))


def as_bytes(tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> bytes:
    """Return the content of the file that ``save_checkpoint`` writes."""
    flat = {name: t.detach().cpu().clone(memory_format=torch.contiguous_format) for name, t in tensors.items()}
    text = json.dumps(meta, allow_nan=False)
    return save(flat, {"egd": text, "digest": _digest(flat, text)})


def load_checkpoint(path: Path, device: torch.device | str = "cpu") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Load the tensors and ``meta`` that ``save_checkpoint`` wrote. Raises Damaged where the file is not a checkpoint, or its
    digest does not match.
    """
    with _opened(path) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        about = file.metadata() or {}
        meta: dict[str, Any] = json.loads(about["egd"])
        if about.get("digest") != _digest(tensors, about["egd"]):
            raise ValueError("its digest is another" if "digest" in about else "it has no digest, as before egd wrote them")
    return {name: tensor.to(device) for name, tensor in tensors.items()}, meta


def read_meta(path: Path) -> dict[str, Any]:
    """Read a checkpoint's ``meta`` without its tensors; the digest is not checked. Raises Damaged where the file is not a
    checkpoint.
    """
    with _opened(path) as file:
        meta: dict[str, Any] = json.loads((file.metadata() or {})["egd"])
    return meta


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(regular(path), "pt", device="cpu") as file:
            yield file
    except (SafetensorError, KeyError, OSError, ValueError, TypeError, RuntimeError) as error:
        raise Damaged(f"{path} is not a checkpoint of egd ({error}); remove it and run again") from error


def _digest(tensors: Mapping[str, Tensor], text: str) -> str:
    """Digest the tensors' names, types, shapes and bytes together with the text of ``meta``."""
    whole = hashlib.blake2b(text.encode(), digest_size=16)
    for name, tensor in sorted(tensors.items()):
        whole.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        whole.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return whole.hexdigest()


def prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Add a prefix to the name of every tensor."""
    return {f"{prefix}.{name}": t for name, t in tensors.items()}


def group(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Select the tensors with a prefix, and remove the prefix from their names."""
    head = prefix + "."
    return {name.removeprefix(head): t for name, t in tensors.items() if name.startswith(head)}


def optimiser_state(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return an optimiser's tensors under the names ``<parameter index>.<name>``. Its settings are not among them: the recipe
    gives these.
    """
    state = optimiser.state_dict()["state"]
    return {f"{i}.{name}": torch.as_tensor(v) for i, slots in state.items() for name, v in slots.items()}


def load_optimiser(optimiser: torch.optim.Optimizer, state: Mapping[str, Tensor]) -> None:
    """Load what ``optimiser_state`` returned. Raises ValueError where it does not fit the optimiser's parameters."""
    slots: dict[int, dict[str, Tensor]] = {}
    for key, value in state.items():
        index, _, name = key.partition(".")
        slots.setdefault(int(index), {})[name] = value
    parameters = [p for settings in optimiser.param_groups for p in settings["params"]]
    for number, own in slots.items():
        for name, value in own.items():
            if not 0 <= number < len(parameters) or (value.ndim and value.shape != parameters[number].shape):
                raise ValueError(f"the optimiser's {number}.{name}, {tuple(value.shape)}, has no parameter of that shape")
    if len({frozenset(own) for own in slots.values()}) > 1:
        raise ValueError("the optimiser has other slots for some parameters than for others")
    optimiser.load_state_dict({"state": slots, "param_groups": optimiser.state_dict()["param_groups"]})
