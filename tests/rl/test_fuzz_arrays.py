"""Datasets of any arrays, by hypothesis: what is read is what is in the file, all else is refused, and a check says the same.

``EGD_FUZZ=1000 pytest tests/rl/test_fuzz_arrays.py`` tries so many of each kind. ``tools/fuzz_data.py`` damages files.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import gymnasium as gym
import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from egd.errors import UserError
from rl.data.d4rl_import import import_hdf5
from rl.data.episodes import Episodes, load_episodes, to_offline_data
from rl.data.health import problems_of
from rl.data.minari_store import episode_buffer, write_dataset
from rl.data.stored import place_of

fuzz = settings(
    max_examples=int(os.environ.get("EGD_FUZZ", "25")),
    derandomize="EGD_FUZZ" not in os.environ,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
ID = "fuzz/arrays-v0"
STEPS = 4
ROWS = {"observations": (STEPS, 2), "next_observations": (STEPS, 2), "actions": (STEPS, 1)}
FIELDS = ("rewards", "terminals", "timeouts")
PLAIN = [np.dtype(d) for d in ("f4", "f8", "f2", "i4", "u1", "?")]
STRANGE = [np.dtype(d) for d in ("c8", "S3", "i8", "u8")]
SPACES = gym.spaces.Box(-np.inf, np.inf, (2,), np.float64), gym.spaces.Box(-1, 1, (1,), np.float32)


@pytest.fixture(autouse=True)
def datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))


@st.composite
def array(draw: st.DrawFn, shape: tuple[int, ...], flags: bool) -> Any:
    """Mostly of that shape, of a usual type, and with small numbers or flags in it."""
    n, rest = shape[0], shape[1:]
    shape = draw(st.sampled_from([shape] * 9 + [(n - 1, *rest), (n + 1, *rest), (n, *rest, 1), (n, 2), (), (0, *rest)]))
    dtype = draw(st.sampled_from(PLAIN * 5 + STRANGE))
    usual = st.sampled_from([0, 1]) if flags or dtype.kind not in "fc" else st.sampled_from([0, 0.25, -0.5, 1])
    if dtype.kind == "S" or draw(st.integers(0, 9)) == 0:
        return draw(arrays.arrays(dtype, shape))
    return draw(arrays.arrays(dtype, shape, elements=usual.map(dtype.type)))


@fuzz
@given(data=st.data())
def test_a_d4rl_file_is_imported_as_it_is_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "file.hdf5"
    wanted = {**ROWS, **dict.fromkeys(FIELDS, (STEPS,))}
    left_out = data.draw(st.sets(st.sampled_from([*wanted]), max_size=1))
    rows = {name: data.draw(array(shape, name in FIELDS[1:])) for name, shape in wanted.items() if name not in left_out}
    with h5py.File(path, "w") as file:
        for name, values in rows.items():
            file[name] = values
    shutil.rmtree(tmp_path / "minari", ignore_errors=True)
    problems = problems_of(str(path))[str(path)]
    try:
        report = import_hdf5(path, ID, max_steps=3)
        read = load_episodes([ID])
        to_offline_data(read, 0.0)
    except UserError as error:
        named = bool(problems) or "no complete transition" in str(error)
        assert named, (rows, error)  # noqa: PT017
        return
    assert not problems, (rows, problems)
    assert report.steps == sum(read.lengths) == STEPS - report.dropped
    if not report.dropped:
        assert_same(read, rows["observations"], rows["actions"], rows["rewards"], rows["terminals"])


@fuzz
@given(data=st.data())
def test_a_minari_dataset_is_read_as_it_is_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    shutil.rmtree(tmp_path / "minari", ignore_errors=True)
    buffer = episode_buffer(np.zeros((STEPS + 1, 2)), np.zeros((STEPS, 1)), np.zeros(STEPS, np.float32))
    write_dataset(ID, [buffer], *SPACES, None, {})
    shapes = {"observations": (STEPS + 1, 2), "actions": (STEPS, 1), "rewards": (STEPS,)}
    wanted = {**shapes, "terminations": (STEPS,), "truncations": (STEPS,)}
    changed = data.draw(st.sets(st.sampled_from([*wanted]), min_size=1))
    rows = {name: data.draw(array(wanted[name], name.endswith("ations") and name[0] == "t")) for name in sorted(changed)}
    with h5py.File(place_of(ID) / "data" / "main_data.hdf5", "r+") as file:
        there = {name: rows.get(name, file["episode_0"][name][()]) for name in wanted}
        for name, values in rows.items():
            del file["episode_0"][name]
            file["episode_0"][name] = values
    (problems,) = problems_of(ID).values()
    try:
        read = load_episodes([ID])
        to_offline_data(read, 0.0)
    except UserError:
        assert problems, rows
        return
    assert not problems, (rows, problems)
    assert_same(read, *(there[name] for name in ("observations", "actions", "rewards", "terminations")))


def assert_same(read: Episodes, observations: Any, actions: Any, rewards: Any, terminals: Any) -> None:
    """All rows, in order; the last observation of an episode besides, in a D4RL file."""
    count = len(actions)
    seen = np.concatenate([o[:-1] for o in read.observations])
    for found, written in ((seen, observations[:count]), (np.concatenate(read.actions), actions)):
        np.testing.assert_array_equal(found, np.asarray(written).astype(np.float32))
    np.testing.assert_array_equal(np.concatenate(read.rewards), np.asarray(rewards).reshape(-1).astype(np.float32))
    np.testing.assert_array_equal(np.concatenate(read.terminations), np.asarray(terminals).reshape(-1).astype(bool))
    assert all(np.isfinite(a).all() for part in (read.observations, read.actions, read.rewards) for a in part)
