"""Writing of datasets to the local Minari store. A killed process leaves nothing that looks like a complete dataset."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import gymnasium as gym
import minari
import numpy as np
from gymnasium.envs.registration import EnvSpec
from minari.data_collector import EpisodeBuffer
from minari.dataset.minari_dataset import parse_dataset_id
from minari.dataset.minari_storage import MinariStorage
from minari.namespace import create_namespace, list_local_namespaces
from numpy.typing import NDArray

from egd.errors import UserError
from egd.runs.locks import locked
from rl.data.stored import lacking, place_of, store_root


def check_new_id(dataset_id: str) -> Path:
    """Return the folder in which ``dataset_id`` will be stored. Raises UserError where the id is malformed or taken."""
    path = place_of(dataset_id)
    if lack := lacking(dataset_id):
        raise UserError(lack)
    if path.exists():
        raise UserError(
            f"dataset '{dataset_id}' already exists in {path}: take another id or delete it (minari delete {dataset_id})"
        )
    return path


ROOM = 2**24
"""Bytes that must stay free on the disk beside the data: HDF5 crashes on a full one."""


@contextmanager
def making(dataset_id: str) -> Iterator[None]:
    """Lock the dataset's id against other processes within the with-block, and remove what killed processes left of it.

    Raises UserError where another process is making the dataset, and as ``check_new_id`` does.
    """
    final = check_new_id(dataset_id)
    with ExitStack() as held:
        with _writing(dataset_id):
            lock = store_root() / f".{dataset_id.replace('/', '-')[:200]}.lock"
            held.enter_context(locked(lock, f"dataset '{dataset_id}'", "dataset"))
        for left in final.parent.glob(f".{final.name}.partial-*"):
            shutil.rmtree(left, ignore_errors=True)
        check_new_id(dataset_id)  # another process may have finished it just now
        yield


@contextmanager
def _writing(dataset_id: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write '{dataset_id}' to {store_root()} ({error.strerror or error}): "
            "make room, or set MINARI_DATASETS_PATH to a folder you can write to"
        ) from error


def write_dataset(
    dataset_id: str,
    buffers: Iterable[EpisodeBuffer],
    observation_space: gym.Space[Any],
    action_space: gym.Space[Any],
    env_spec: EnvSpec | None,
    metadata: dict[str, Any],
) -> None:
    """Store ``buffers`` as a local dataset that appears under its name only when it is complete.

    The steps are those of ``minari.create_dataset_from_buffers``, which writes the metadata first and in place, so that a
    killed process leaves a folder that loads as a dataset. Here all files are written to a hidden sibling folder, which
    Minari does not list, and the folder is renamed at the end.
    """
    final = check_new_id(dataset_id)
    partial = final.with_name(f".{final.name}.partial-{os.getpid()}")
    try:
        with _writing(dataset_id):
            store_root().mkdir(parents=True, exist_ok=True)  # the first dataset of a new store
            _check_room(store_root(), 0)
            _ensure_namespace(dataset_id)
            shutil.rmtree(partial, ignore_errors=True)
            (partial / "data").mkdir(parents=True)
            storage = MinariStorage.new(partial / "data", observation_space, action_space, env_spec)
            storage.update_metadata({"dataset_id": dataset_id, "minari_version": minari.__version__, **metadata})
            storage.update_episodes(_with_room(buffers, partial))
            partial.rename(final)
    except BaseException:  # an interrupt too must not leave the folder behind
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _with_room(buffers: Iterable[EpisodeBuffer], folder: Path) -> Iterator[EpisodeBuffer]:
    """Yield the buffers unchanged, after checking that the disk has room for them; raise OSError where it has not."""
    room = 0
    for buffer in buffers:
        wanted = 2 * _bytes(vars(buffer))
        if wanted > room:
            room = max(wanted, ROOM)
            _check_room(folder, room)
        room -= wanted
        yield buffer


def _check_room(folder: Path, wanted: int) -> None:
    """Raise OSError unless the data file can grow by ``wanted`` bytes.

    The allocation is tried: the free space of a disk says nothing of a user's quota or of a limit on the size of files.
    """
    if shutil.disk_usage(folder).free < wanted + ROOM:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
    data = folder / "data" / "main_data.hdf5"
    with tempfile.TemporaryFile(dir=folder) as trial:
        if hasattr(os, "posix_fallocate"):
            _allocate(trial.fileno(), data.stat().st_size if data.exists() else 0, wanted + ROOM)


def _allocate(file: int, start: int, size: int) -> None:
    try:
        os.posix_fallocate(file, start, size)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):  # not supported there
            raise


def _bytes(value: Any) -> int:
    if isinstance(value, Mapping):
        return sum(_bytes(part) for part in value.values())
    return sum(map(_bytes, value)) if isinstance(value, list | tuple) else int(getattr(value, "nbytes", 8))


def _ensure_namespace(dataset_id: str) -> None:
    """Create the namespace of the id if it is new: Minari requires a metadata file in every namespace folder."""
    namespace = parse_dataset_id(dataset_id)[0]
    if namespace is not None and namespace not in list_local_namespaces():
        create_namespace(namespace)


def episode_buffer(
    observations: NDArray[Any],
    actions: NDArray[Any],
    rewards: NDArray[np.float32],
    *,
    terminal: bool = False,
    seed: int | None = None,
) -> EpisodeBuffer:
    """Return observations (T+1, obs), actions (T, act) and rewards (T,) as an episode that ends at its last step."""
    last = np.zeros(len(rewards), dtype=bool)
    last[-1] = True
    fields: dict[str, Any] = {  # arrays where Minari's annotations say lists: its storage takes both
        "observations": observations,
        "actions": actions,
        "rewards": rewards,
        "terminations": last & terminal,
        "truncations": last & (not terminal),
    }
    return EpisodeBuffer(seed=seed, **fields)
