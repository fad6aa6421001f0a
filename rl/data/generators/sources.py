"""Access to stored datasets for generators of variants: whole episodes, with their reset's seed and options."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from minari.data_collector import EpisodeBuffer

from egd.errors import UserError
from rl.data.episodes import open_dataset
from rl.data.stored import Stored, read_episodes


def find_source(dataset_id: str, key: str, *, download: bool) -> Stored:
    """Return the dataset of this Minari id, downloaded only with ``download``. Raises UserError naming ``key`` if it cannot be
    had.
    """
    try:
        return open_dataset(dataset_id, download=download)
    except UserError as error:
        raise UserError(str(error), key=key) from error


def copies(source: Stored, indices: Sequence[int]) -> Iterator[EpisodeBuffer]:
    """Yield copies of the episodes with their seeds and options; ``infos`` are left out because no method reads them."""
    for episode in read_episodes(source, indices=indices):
        fields: dict[str, Any] = {  # arrays where Minari's annotations say lists
            "observations": episode.observations,
            "actions": episode.actions,
            "rewards": episode.rewards,
            "terminations": episode.terminations,
            "truncations": episode.truncations,
        }
        yield EpisodeBuffer(seed=episode.seed, options=episode.options, **fields)
