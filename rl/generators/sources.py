"""What generators of variants read: episodes of a stored dataset, whole, and how each began."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import minari
from minari.data_collector import EpisodeBuffer

from egd.errors import UserError
from rl.data.episodes import open_dataset


@dataclass(frozen=True)
class Start:
    """How a recorded episode began: the seed and options of its reset; no seed where it went on from the one before."""

    seed: int | None
    options: dict[str, Any] | None


def find_source(dataset_id: str, key: str, *, download: bool) -> minari.MinariDataset:
    """The dataset of that Minari id, from the hub only with ``download``. UserError naming ``key`` where there is none."""
    try:
        return open_dataset(dataset_id, download=download)
    except UserError as error:
        raise UserError(str(error), key=key) from error


def start(source: minari.MinariDataset, index: int) -> Start:
    """How the episode began."""
    metadata = next(iter(source.storage.get_episode_metadata([index])))
    return Start(metadata.get("seed"), metadata.get("options"))


def copies(source: minari.MinariDataset, indices: Sequence[int]) -> Iterator[EpisodeBuffer]:
    """The episodes as they are, seeds and options with them. ``infos`` are left behind: no method reads them."""
    for index, episode in zip(indices, source.iterate_episodes(indices), strict=True):
        begun = start(source, index)
        yield EpisodeBuffer(
            seed=begun.seed,
            options=begun.options,
            observations=episode.observations,
            actions=episode.actions,
            rewards=episode.rewards,
            terminations=episode.terminations,
            truncations=episode.truncations,
        )
