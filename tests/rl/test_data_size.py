"""What a dataset really takes of memory is counted where it is loaded: plans and metadata may be wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import yaml

from egd.errors import UserError
from rl.data.episodes import Episodes, load_episodes
from rl.data.minari_store import episode_buffer, write_dataset
from rl.runs.loading import load_data
from rl.runs.recipe import typed

ID = "mine/large-v0"


def config(tiny: str, **settings: Any) -> Any:
    tree = {k: v for k, v in yaml.safe_load(tiny).items() if k not in ("tasks", "budgets", "data")}
    return typed(tree | {"task": "egd/maze2d/umaze-v0", "data": {"datasets": [ID]}} | settings, "test")


def of_so_many(steps: int) -> Episodes:
    """One episode that takes no memory as yet."""
    shapes: Any = ((steps + 1, 4), (steps, 2), (steps,), (steps,))
    return Episodes(*([np.broadcast_to(np.zeros((), np.float32), shape)] for shape in shapes))


@pytest.mark.parametrize(
    ("settings", "steps", "key"),
    [
        ({}, 2 * 10**7, "data.datasets"),
        ({"support": {"actions": 100}}, 3 * 10**6, "support.actions"),
    ],
)
def test_data_that_do_not_fit_are_refused_before_anything_is_made_of_them(
    tiny: str, settings: dict[str, Any], steps: int, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EGD_MEMORY_GB", "2")
    monkeypatch.setattr("rl.runs.loading.load_episodes", lambda *_, **__: of_so_many(steps))
    monkeypatch.setattr("rl.runs.loading.fingerprint", lambda *_: pytest.fail("it was gone on with"))
    with pytest.raises(UserError, match=rf"^{key}: .*of memory are needed.*this machine has 2.0 GB") as refused:
        load_data(config(tiny, **settings), "cpu")
    assert refused.value.key == ID


def test_reading_ends_where_the_memory_does_whatever_the_metadata_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    buffers = [episode_buffer(np.zeros((1001, 2)), np.zeros((1000, 1)), np.zeros(1000, np.float32)) for _ in range(9)]
    box, act = gym.spaces.Box(-1, 1, (2,), np.float64), gym.spaces.Box(-1, 1, (1,), np.float32)
    write_dataset(ID, buffers, box, act, None, {"total_steps": 9})
    monkeypatch.setenv("EGD_MEMORY_GB", "0.0002")
    with pytest.raises(UserError, match=r"mine/large-v0: its first 3,000 steps take about 0.000252 GB.*EGD_MEMORY_GB"):
        load_episodes([ID])
