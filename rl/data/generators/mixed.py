"""Concatenation of datasets, whole or in part: medium-expert is one of medium and expert."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from minari.data_collector import EpisodeBuffer

from egd.bounds import PositiveShare, Seed
from egd.errors import UserError
from rl.data.generators import Progress
from rl.data.generators.sources import copies, find_source
from rl.data.minari_store import check_new_id, write_dataset
from rl.data.stored import Stored
from rl.envs.specs import recorded_spec

__all__ = ["mixed"]


def mixed(
    dataset_id: str,
    parts: Mapping[str, PositiveShare],
    *,
    seed: Seed = 0,
    download: bool = True,
    progress: Progress | None = None,
) -> str:
    """Concatenate datasets, or random shares of their episodes, such as medium and expert to medium-expert.

    ``parts`` maps a Minari id to the share of its episodes to take, in (0, 1]: ``round(share * episodes)`` of them, drawn
    without replacement by ``seed`` and kept in order. The environment is that of the first part. With ``download`` a part
    that is not local is downloaded from Minari's hub. Returns the id. Raises UserError where a part is missing, a share is
    out of range, or the spaces of the parts differ.
    """
    check_new_id(dataset_id)
    if not parts:
        raise UserError("a mixture needs parts: {dataset: share, ...}, such as {mujoco/hopper/medium-v0: 0.5}", key="parts")
    sources = {name: find_source(name, "parts", download=download) for name in parts}
    first = next(iter(sources.values()))
    for name, source in sources.items():
        _check_fit(name, source, first)
    rng = np.random.default_rng(seed)
    chosen = {name: _choose(name, source.total_episodes, parts[name], rng) for name, source in sources.items()}
    counts = [f"{len(indices)} of {sources[name].total_episodes} episodes of {name}" for name, indices in chosen.items()]
    metadata = {"algorithm_name": "mixture", "description": f"{', '.join(counts)}; seed {seed}."}

    def buffers() -> Iterator[EpisodeBuffer]:
        done = 0
        for name, indices in chosen.items():
            for buffer in copies(sources[name], indices):
                yield buffer
                done += len(buffer)
                if progress is not None:
                    progress(done)

    spec = recorded_spec(first)
    write_dataset(dataset_id, buffers(), first.observation_space, first.action_space, spec, metadata)
    return dataset_id


def _choose(name: str, episodes: int, share: float, rng: np.random.Generator) -> list[int]:
    if not 0 < share <= 1:
        raise UserError(f"the share of {name} is {share:g}: give more than 0, at most 1", key=f"parts.{name}")
    count = round(share * episodes)
    if count == 0:
        raise UserError(f"a share of {share:g} of the {episodes} episodes of {name} is none of them", key=f"parts.{name}")
    return sorted(rng.choice(episodes, count, replace=False).tolist())


def _check_fit(name: str, source: Stored, first: Stored) -> None:
    for kind in ("observation_space", "action_space"):
        one, other = getattr(first, kind), getattr(source, kind)
        if one != other:
            what = kind.replace("_", " ")
            raise UserError(
                f"{name} has the {what} {other}, the first part {one}: mix datasets of one environment", key="parts"
            )
