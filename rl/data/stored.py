"""Reader of untrusted datasets of the local Minari store.

Metadata, spaces and episodes are checked before anything is made from them, and no code that they name is imported here.
"""

from __future__ import annotations

import json
import os
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import h5py
import minari
import numpy as np
from minari.dataset._storages.hdf5_storage import unflatten_dict
from minari.dataset.minari_dataset import parse_dataset_id
from minari.serialization import deserialize_space
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, NonNegativeInt, ValidationError

from egd.errors import UserError
from egd.files import read_regular
from rl.data.checks import Array, Complain, Digits, check_ends, check_reach, column, flags, numbers, refusing, table
from rl.data.hdf5 import Reader, opened
from rl.envs.spaces import check_actions, flat_paths, flatten_rows

METADATA_BYTES = 2**26
ENTRIES = 2**20
"""Largest number of entries of a space: the bounds of a larger one would fill the memory."""
DEPTH = 16
"""Largest depth of nested spaces."""
NAME_BYTES = 255
"""Longest name of a folder on most file systems."""


class Metadata(BaseModel):
    """Fields of ``metadata.json`` that are used."""

    model_config = ConfigDict(strict=True)
    data_format: Literal["hdf5"]
    minari_version: str
    total_episodes: NonNegativeInt
    total_steps: NonNegativeInt
    observation_space: str
    action_space: str
    env_spec: str | None = None
    eval_env_spec: str | None = None


@dataclass(frozen=True)
class Stored:
    """Stored dataset with valid metadata and spaces."""

    dataset_id: str
    folder: Path
    metadata: Metadata
    observation_space: gym.Space[Any]
    action_space: gym.Space[Any]

    @property
    def total_episodes(self) -> int:
        """Number of episodes."""
        return self.metadata.total_episodes


@dataclass(frozen=True)
class Episode:
    """Stored episode, checked.

    ``observations`` is (T + 1, ...), or a dict of dicts of such arrays for a Dict space; ``actions`` is (T, A), the other
    arrays are (T,). ``seed`` and ``options`` are those of its reset.
    """

    observations: Any
    actions: Array
    rewards: Array
    terminations: NDArray[np.bool_]
    truncations: NDArray[np.bool_]
    seed: int | None
    options: dict[str, Any] | None


def store_root() -> Path:
    """Return the folder of the local store. Raises UserError if MINARI_DATASETS_PATH does not name a folder."""
    named = os.environ.get("MINARI_DATASETS_PATH")
    if named is None:
        return Path.home() / ".minari" / "datasets"
    remedy = "name a folder for datasets, or unset it for Minari's own"
    if not named.strip():
        raise UserError(f"it is empty; {remedy}", key="MINARI_DATASETS_PATH")
    root = Path(named)
    try:
        if root.exists() and not root.is_dir():
            raise UserError(f"'{named}' is not a folder; {remedy}", key="MINARI_DATASETS_PATH")
    except (OSError, ValueError) as error:
        raise UserError(f"'{named}' is no folder ({error}); {remedy}", key="MINARI_DATASETS_PATH") from error
    return root


def place_of(dataset_id: str) -> Path:
    """Return the dataset's folder, which is always inside the store. Raises UserError for a malformed id."""
    if not _is_id(dataset_id):
        raise UserError(
            f"{dataset_id[:100]!r} is no dataset id: write it as name-v0 or namespace/name-v0 (letters, digits, - and _)"
        )
    return store_root() / dataset_id


def _is_id(text: str) -> bool:
    try:
        parse_dataset_id(text)  # so it has neither dots nor a slash in front
    except (ValueError, TypeError):  # TypeError: Minari's answer to an id without a version
        return False
    return all(0 < len(part.encode()) <= NAME_BYTES for part in text.split("/"))


def is_local(dataset_id: str) -> bool:
    """Return whether the local store has a folder of the dataset with metadata."""
    try:
        return (place_of(dataset_id) / "data" / "metadata.json").exists()
    except OSError:  # a folder without read permission
        return False


PARTS = ("metadata.json", "main_data.hdf5")


def lacking(dataset_id: str) -> str:
    """Return a sentence that names the missing files of a dataset whose folder exists, and a remedy; else an empty string."""
    folder = place_of(dataset_id)
    try:
        missing = [f"data/{name}" for name in PARTS if not (folder / "data" / name).exists()] if folder.is_dir() else []
    except OSError:  # a folder without read permission
        return ""
    if not missing:
        return ""
    partial = " (files of an interrupted download are there)" if any(folder.rglob("*.incomplete")) else ""
    return (
        f"dataset {dataset_id} is incomplete: {folder} lacks {' and '.join(missing)}{partial}; put back what is missing, or "
        "remove that folder and get the dataset anew, as it was got before"
    )


def list_local() -> dict[str, dict[str, Any]]:
    """Return the metadata of all local datasets by id, as stored. Raises UserError where the store cannot be read."""
    root = store_root()
    if not root.exists():
        return {}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about folders that are no datasets
            return dict(minari.list_local_datasets())
    except Exception as error:  # a folder without a version in its name, an unreadable one, ...
        raise UserError(f"the datasets in {root} cannot be listed: {error}", key="MINARI_DATASETS_PATH") from error


def find_stored(dataset_id: str, complain: Complain | None = None) -> Stored | None:
    """Return the local dataset of that id with checked metadata and spaces, or None after a complaint."""
    complain = complain or refusing(dataset_id)
    folder = place_of(dataset_id) / "data"
    metadata = _metadata(folder / "metadata.json", complain)
    if metadata is None:
        return None
    observations = _space(metadata.observation_space, "the observation space", complain)
    actions = _space(metadata.action_space, "the action space", complain)
    if observations is None or actions is None:
        return None
    return Stored(dataset_id, folder, metadata, observations, actions)


def existing(dataset_id: str) -> Stored:
    """Return the local dataset of that id with checked metadata and spaces; raise UserError for an invalid or missing one."""
    if not is_local(dataset_id):
        gone = (
            f"dataset {dataset_id} is not in {store_root()}; set MINARI_DATASETS_PATH to the folder that has it, or get it anew"
        )
        raise UserError(lacking(dataset_id) or gone, key="data.datasets")
    found = find_stored(dataset_id)
    assert found is not None  # find_stored raised UserError otherwise
    return found


def check_spaces(stored: Stored, keys: tuple[str, ...], complain: Complain) -> bool:
    """Return whether policies can be learned in the dataset's spaces; complain otherwise.

    Of a Dict space only the entries ``keys`` are checked, if any are named.
    """
    sound = True
    checks = (lambda: flat_paths(stored.observation_space, keys), lambda: check_actions(stored.action_space))
    for check in checks:
        try:
            check()
        except UserError as error:
            complain(str(error))
            sound = False
    return sound


def read_episodes(
    stored: Stored, complain: Complain | None = None, *, keys: tuple[str, ...] = (), indices: Iterable[int] | None = None
) -> Iterator[Episode]:
    """Yield the valid episodes in order, or those of the given ``indices``; ``infos`` are never read.

    ``keys`` names the entries of a Dict observation to read, all by default.
    """
    complain = complain or refusing(stored.dataset_id)
    with opened(stored.folder / "main_data.hdf5", complain) as reader:
        if reader is None:
            return
        there = _numbered(stored, reader, complain)
        wanted = there if indices is None else indices
        lengths = []
        for index in wanted:
            if (episode := _episode(stored, reader, index, keys, complain)) is not None:
                lengths.append(len(episode.rewards))
                yield episode
        total = stored.metadata.total_steps
        if indices is None and len(lengths) == len(there) and sum(lengths) != total:
            complain(f"metadata.json counts {total} steps, main_data.hdf5 has {sum(lengths)}")


def check_all(dataset_id: str, keys: tuple[str, ...], complain: Complain) -> Stored | None:
    """Check a local dataset, and complain of all problems: metadata, spaces, episodes, range of actions, precision of
    observations.

    Returns the dataset, or None where its metadata or spaces are invalid.
    """
    stored = find_stored(dataset_id, complain)
    if stored is None or not check_spaces(stored, keys, complain):
        return stored
    paths, digits = flat_paths(stored.observation_space, keys), Digits()
    for index, episode in enumerate(read_episodes(stored, complain, keys=keys)):
        check_reach(episode.actions, f"episode {index}: actions", complain)
        digits.add(flatten_rows(episode.observations, paths))
    digits.check("observations", complain)
    return stored


# -- metadata --------------------------------------------------------------------------------------------------------


def _metadata(path: Path, complain: Complain) -> Metadata | None:
    try:
        tree = json.loads(read_regular(path, METADATA_BYTES))
        metadata = Metadata.model_validate(tree)
    except ValidationError as error:
        for part in error.errors():
            field = ".".join(map(str, part["loc"])) or "all of it"
            complain(f"metadata.json, {field}: {part['msg']}, not {repr(part['input'])[:60]}")
        return None
    except (OSError, ValueError, RecursionError) as error:
        complain(f"metadata.json cannot be read ({' '.join(str(error).split())[:200]})")
        return None
    if metadata.minari_version not in minari.supported_dataset_versions:
        known = ", ".join(sorted(minari.supported_dataset_versions))
        complain(f"it was written by Minari {metadata.minari_version[:40]}, the installed one reads those of {known}")
        return None
    return metadata


def _space(text: str, name: str, complain: Complain) -> gym.Space[Any] | None:
    try:
        tree = json.loads(text)
        _check_tree(tree, DEPTH)
        space: gym.Space[Any] = deserialize_space(tree)
    except Exception as error:  # Minari's and gymnasium's constructors raise whatever they meet
        complain(f"{name} of metadata.json is none ({type(error).__name__}: {' '.join(str(error).split())[:160]})")
        return None
    return space


def _check_tree(tree: Any, depth: int) -> None:
    """Raise ValueError for the description of a space that is nested too deeply or too large."""
    if depth == 0:
        raise ValueError(f"it is nested more than {DEPTH} deep")
    if tree["type"] in ("Dict", "Tuple"):
        parts = tree["subspaces"]
        for part in parts.values() if isinstance(parts, dict) else parts:
            _check_tree(part, depth - 1)
    elif tree["type"] == "Box":
        shape = tree["shape"]
        if not all(type(n) is int and n >= 0 for n in shape) or np.prod(shape, dtype=np.float64) > ENTRIES:
            raise ValueError(f"a Box of shape {str(shape)[:60]}")
        if np.dtype(tree["dtype"]).kind not in "biuf":
            raise ValueError(f"a Box of {str(tree['dtype'])[:40]}")


# -- episodes --------------------------------------------------------------------------------------------------------


def _numbered(stored: Stored, reader: Reader, complain: Complain) -> list[int]:
    """Return the numbers of the episodes in the file; complain where they differ from the metadata."""
    total, names = stored.total_episodes, set(reader.names(reader.root))
    found = [i for i in range(min(total, len(names))) if f"episode_{i}" in names]
    more = sum(name.startswith("episode_") for name in names)
    if not len(found) == more == total:
        complain(f"metadata.json counts {total} episodes (episode_0 and so on), main_data.hdf5 has {more}")
    elif not total:
        complain("it has no episodes")
    return found


def _episode(stored: Stored, reader: Reader, index: int, keys: tuple[str, ...], complain: Complain) -> Episode | None:
    """Return the episode of this index, or None after complaints of all its problems."""
    name = f"episode {index}"
    group = reader.group(reader.root, f"episode_{index}", name)
    if group is None:
        return None
    raw = {field: reader.array(group, field, f"{name}: {field}") for field in ("rewards", "terminations", "truncations")}
    lengths = Counter(len(values) for values in raw.values() if values is not None and values.ndim)
    steps = lengths.most_common(1)[0][0] if lengths else 0
    if not steps:
        complain(f"{name} has no steps")
        return None
    noted = reader.attributes(group, name)
    if "total_steps" in noted and not np.array_equal(noted["total_steps"], steps):
        complain(f"{name}: total_steps is noted as {str(noted['total_steps'])[:40]}, but it has {steps}")
    rewards, terminations, truncations = (
        None if values is None else _numbers(values, field == "rewards", f"{name}: {field}", steps, complain)
        for field, values in raw.items()
    )
    if terminations is not None:
        check_ends(terminations, f"{name}: terminations", complain)
    observations = _entries(reader, group, "observations", f"{name}: observations", stored.observation_space, steps + 1, keys)
    actions = _entries(reader, group, "actions", f"{name}: actions", stored.action_space, steps, ())
    if rewards is None or observations is None or actions is None or terminations is None or truncations is None:
        return None
    begun = unflatten_dict(noted)
    seed = begun.get("seed")
    return Episode(
        observations,
        actions,
        rewards,
        terminations,
        truncations,
        int(seed) if isinstance(seed, int | np.integer) else None,
        begun.get("options"),
    )


def _numbers(values: Array, real: bool, where: str, steps: int, complain: Complain) -> Array | None:
    """Return (T,) numbers if ``real``, else flags; complain and return None for anything else."""
    rows = column(values, where, steps, complain)
    return None if rows is None else numbers(rows, where, complain) if real else flags(rows, where, complain)


def _entries(
    reader: Reader, group: h5py.Group, field: str, where: str, space: gym.Space[Any], rows: int, keys: tuple[str, ...]
) -> Any:
    """Return the arrays of a space, as a nested dict for a Dict space; complain and return None where one is invalid."""
    if isinstance(space, gym.spaces.Dict):
        held = reader.group(group, field, where)
        if held is None:
            return None
        wanted = keys or tuple(space.spaces)
        found = {key: _entries(reader, held, key, f"{where}'s '{key}'", space.spaces[key], rows, ()) for key in wanted}
        return None if any(value is None for value in found.values()) else found
    values = reader.array(group, field, where)
    values = None if values is None else table(values, where, rows, space.shape or (), reader.complain)
    return None if values is None else numbers(values, where, reader.complain)
