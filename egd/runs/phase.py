"""A phase of training: what is trained, for how many steps, and what determines the outcome."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import BaseModel

from egd.runs.folder import RunFolder
from egd.tensors import isolated_rng
from egd.training.divergence import Vitals
from egd.training.learners import Learner

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


@dataclass(frozen=True)
class PhaseRun:
    """A phase of one run, with the run's folder and seed."""

    phase: Phase
    folder: RunFolder
    seed: int
