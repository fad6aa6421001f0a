"""The online replay: transitions of the environment, oldest first."""

from __future__ import annotations

import torch
from torch import Tensor

from rl.data.transitions import Batch, drawn


class Replay:
    """Buffer for ``capacity`` transitions of the shapes of ``like``."""

    def __init__(self, capacity: int, like: Batch) -> None:
        fields = (getattr(like, name) for name in Batch.__dataclass_fields__)
        self.room = Batch(*(f.new_zeros(capacity, *f.shape[1:]) for f in fields))
        self.size = 0

    def __len__(self) -> int:
        return self.size

    @property
    def rows(self) -> Batch:
        """All transitions, as a view."""
        return self.recent(self.size)

    def recent(self, count: int) -> Batch:
        """Return the last ``count`` transitions, or all if there are fewer, as a view."""
        part = slice(max(0, self.size - count), self.size)
        return Batch(*(getattr(self.room, name)[part] for name in Batch.__dataclass_fields__))

    def append(self, row: Batch) -> None:
        """Append one transition. Raise IndexError where the buffer is full."""
        for name in Batch.__dataclass_fields__:
            getattr(self.room, name)[self.size] = getattr(row, name)[0]
        self.size += 1

    def sample(self, n: int, generator: torch.Generator) -> Batch:
        """Draw n transitions, uniformly with replacement."""
        return drawn(self.rows, n, generator)

    def state(self) -> dict[str, Tensor]:
        """Return all transitions, for a checkpoint."""
        return {name: getattr(self.rows, name) for name in Batch.__dataclass_fields__}

    def load(self, state: dict[str, Tensor]) -> None:
        """Restore the tensors returned by ``state``."""
        self.size = len(state["reward"])
        for name in Batch.__dataclass_fields__:
            getattr(self.room, name)[: self.size] = state[name]


def joined(*batches: Batch) -> Batch:
    """Concatenate batches, leaving out empty ones."""
    parts = [b for b in batches if len(b)]
    if len(parts) == 1:
        return parts[0]
    return Batch(*(torch.cat([getattr(b, name) for b in parts]) for name in Batch.__dataclass_fields__))
