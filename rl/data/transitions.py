"""Transitions as flat tensors on the device, sampled by index, from which critics and policies learn."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from egd.bounds import Number

RewardScale = Literal["range"] | Number
Rows = TypeVar("Rows", Tensor, "Batch")


@dataclass(frozen=True)
class Batch:
    """Transitions: ``state`` and ``next_state`` (B, S) standardised, ``action`` (B, A), ``reward`` and ``terminal`` (B,).

    ``terminal`` is 1 where the environment ended the episode, 0 at a time-limit truncation, after which values are
    bootstrapped.
    """

    state: Tensor
    action: Tensor
    reward: Tensor
    next_state: Tensor
    terminal: Tensor

    def __len__(self) -> int:
        return len(self.reward)

    def __getitem__(self, index: Tensor) -> Batch:
        return Batch(*(getattr(self, name)[index] for name in self.__dataclass_fields__))

    def to(self, device: torch.device) -> Batch:
        """Return a copy on a device."""
        return Batch(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))


torch.export.register_dataclass(Batch)  # so that the batches of several runs can be stacked


def drawn(rows: Rows, n: int, generator: torch.Generator) -> Rows:
    """Draw n rows of a tensor or of a batch, uniformly with replacement."""
    return rows[torch.randint(len(rows), (n,), generator=generator, device=generator.device)]


@dataclass(frozen=True)
class OfflineData:
    """Training data of a run: all transitions on the device, and the statistics that standardise new states like them."""

    transitions: Batch
    state_mean: Tensor
    state_std: Tensor
    action_low: Tensor
    action_high: Tensor
    dataset_return: float
    episodes: int
    reward_factor: float = 1.0
    reward_shift: float = 0.0
    """The rewards here are (environment reward + shift) times factor."""
    source: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)
    """Fingerprint of the episodes: ``rl.data.record.fingerprint``."""
    _digests: dict[str, str] = field(default_factory=dict, repr=False, compare=False)

    def sample(self, n: int, generator: torch.Generator) -> Batch:
        """Draw n transitions, uniformly with replacement."""
        return self.transitions[self.index(n, generator)]

    def index(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw n row numbers, uniformly with replacement, (n,)."""
        return torch.randint(len(self.transitions), (n,), generator=generator, device=generator.device)

    def standardise(self, observation: Tensor) -> Tensor:
        """Standardise (B, S) observations of the environment, the networks' inputs."""
        return (observation - self.state_mean) / self.state_std

    def transformed(self, reward: float) -> float:
        """Transform a reward of the environment like the rewards of the data."""
        return (reward + self.reward_shift) * self.reward_factor

    def fingerprint(self, *names: str) -> str:
        """Return a digest of the named members of the transitions, or, without names, of all data and statistics.

        Results learned from data of the same digest can be reused.
        """
        digest = hashlib.blake2b(digest_size=16)
        for name in names or tuple(Batch.__dataclass_fields__):
            digest.update(self._digest(name).encode())
        if not names:
            digest.update(repr([getattr(self, name) for name in NUMBERS]).encode())
            digest.update(repr([digest_of(getattr(self, name)) for name in VECTORS]).encode())
        return digest.hexdigest()

    def _digest(self, name: str) -> str:
        if name not in self._digests:
            self._digests[name] = digest_of(getattr(self.transitions, name))
        return self._digests[name]


VECTORS = ("state_mean", "state_std", "action_low", "action_high")
NUMBERS = ("dataset_return", "episodes", "reward_factor", "reward_shift")


def digest_of(*arrays: Tensor | np.ndarray[Any, Any]) -> str:
    """Return a digest of the content, shape and type of every array."""
    digest = hashlib.blake2b(digest_size=16)
    for array in arrays:
        content = np.ascontiguousarray(array.cpu().numpy() if isinstance(array, Tensor) else array)
        digest.update(f"{content.dtype.str}{content.shape}".encode())
        digest.update(content.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
