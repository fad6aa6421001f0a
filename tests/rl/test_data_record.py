"""A run knows its data: which they were, and their statistics."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from egd.errors import UserError
from egd.runs.folder import RunFolder
from rl.data.episodes import Episodes
from rl.data.record import Record, begin, fingerprint, of_run, place
from rl.data.transitions import Batch, OfflineData
from rl.deploy.module import load_module

DATASET = "egd/maze2d/umaze-replaced-v0"
TINY = """
experiment: offline_rl
agent: bc
tasks: {egd/maze2d/umaze-replaced-v0: {}}
data: {generator: {name: maze2d, map_name: umaze, steps: 300, noise: 0.5, seed: %d}}
actor: {width: 8, layers: 1, steps: 20, batch: 16}
evaluation: {episodes: 1, envs: 1, max_steps: 5}
"""


@pytest.fixture
def datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Minari store of a test."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    return tmp_path / "minari"


@pytest.fixture
def train(egd: Any, tmp_path: Path, datasets: Path) -> Any:
    """train(seed of the data, name) -> the run's folder."""

    def call(seed: int, name: str, *flags: str) -> Path:
        recipe = tmp_path / f"{seed}.yaml"
        recipe.write_text(TINY % seed)
        result = egd("run", recipe, "--out", tmp_path / name, *flags)
        assert result.exit_code == 0, result.output
        return next((tmp_path / name).rglob("summary.json")).parent

    return call


def actions(run: Path) -> torch.Tensor:
    module = load_module(run)
    found: torch.Tensor = module(torch.linspace(-1, 1, 8).reshape(2, 4), torch.zeros(2, module.draws, module.entries))
    return found


def table(output: str) -> list[str]:
    return [line for line in output.splitlines() if "│" in line]


def test_a_dataset_that_was_replaced_under_its_id_is_refused(
    egd: Any, train: Any, datasets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EGD_STORE", str(tmp_path / "store"))
    run = train(0, "first")
    before, scores = actions(run), table(egd("eval", run).output)
    shutil.move(datasets / DATASET, tmp_path / "kept")
    assert torch.equal(actions(run), before)  # the run has all that it needs
    assert egd("export", run, "--to", tmp_path / "alone.pt2").exit_code == 0
    assert table(egd("eval", run).output) == scores != []
    other = train(1, "other")  # another dataset of that id
    assert not torch.equal(actions(other), before)
    for command in (("eval", run), ("export", run, "--to", tmp_path / "policy.pt2"), ("select", run)):
        refused = egd(*command)
        assert refused.exit_code == 2, refused.output
        text = " ".join(refused.output.split())
        assert DATASET in text, text
        assert "other observations, actions, rewards" in text, text
        assert "egd run" in text, text
    assert not (tmp_path / "policy.pt2").exists()
    with pytest.raises(UserError, match="trained on other data"):
        load_module(run)
    (run / "summary.json").unlink()
    refused = egd("run", tmp_path / "0.yaml", "--out", tmp_path / "first", "--resume")
    assert refused.exit_code == 2, refused.output
    assert DATASET in refused.output, refused.output
    shutil.rmtree(datasets / DATASET)
    shutil.move(tmp_path / "kept", datasets / DATASET)
    assert train(0, "first", "--resume") == run
    assert torch.equal(actions(run), before)


def test_a_run_without_a_record_says_so_and_goes_on(egd: Any, train: Any) -> None:
    run = train(0, "first")
    before = actions(run)
    place(RunFolder(run)).unlink()
    result = egd("eval", run)
    assert result.exit_code == 0, result.output
    assert "kept no record of a run's data" in " ".join(result.output.split())
    assert torch.equal(actions(run), before)


def test_a_damaged_record_is_refused(egd: Any, train: Any) -> None:
    path = place(RunFolder(train(0, "first")))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    result = egd("eval", path.parent)
    assert result.exit_code == 2, result.output
    assert path.name in result.output, result.output


def test_a_dataset_made_with_other_settings_is_refused(egd: Any, train: Any, tmp_path: Path) -> None:
    train(0, "first")
    recipe = tmp_path / "other.yaml"
    others = {TINY % 1: "seed 0 then, 1", (TINY % 0).replace("noise: 0.5", "noise: 0.4"): "noise 0.5 then, 0.4"}
    for settings, words in others.items():
        recipe.write_text(settings)
        refused = egd("run", recipe, "--out", tmp_path / "other")
        assert refused.exit_code == 2, refused.output
        text = " ".join(refused.output.split())
        assert all(word in text for word in (DATASET, "data.generator", "minari delete", words)), text
        assert not (tmp_path / "other").exists()
    recipe.write_text((TINY % 0).replace("map_name: umaze", "map_name: umaze, dense: false"))  # as by default
    assert egd("run", recipe, "--out", tmp_path / "same").exit_code == 0


def data() -> OfflineData:
    generator = torch.Generator().manual_seed(0)
    state, action = torch.randn(9, 3, generator=generator), torch.rand(9, 2, generator=generator)
    rows = Batch(state, action, torch.zeros(9), state + 1, torch.zeros(9))
    low, high = action.amin(0), action.amax(0)
    return OfflineData(rows, torch.ones(3), 2 * torch.ones(3), low, high, 1.5, 1, source={"datasets": ["a-v0"], "episodes": 1})


def test_statistics_are_those_of_the_run(tmp_path: Path) -> None:
    folder, first = RunFolder(tmp_path), data()
    assert begin(folder, first, pytest.fail) is first
    found = of_run(folder, first, pytest.fail)
    assert found.transitions is first.transitions
    later = replace(first, state_mean=torch.full((3,), 3.0), state_std=torch.full((3,), 4.0), dataset_return=2.0)
    again = of_run(folder, later, pytest.fail)
    torch.testing.assert_close(again.transitions.state * 2 + 1, later.transitions.state * 4 + 3)
    torch.testing.assert_close(again.transitions.next_state * 2 + 1, later.transitions.next_state * 4 + 3)
    assert torch.equal(again.state_mean, first.state_mean)
    assert again.dataset_return == 1.5
    with pytest.raises(UserError, match="1 episodes then, 2 now"):
        of_run(folder, replace(first, source={"datasets": ["a-v0"], "episodes": 2}), pytest.fail)
    record = Record.read(folder)
    assert record is not None
    assert record.alone(torch.device("cpu")).transitions.state.shape == (0, 3)


def episodes(*lengths: int) -> Episodes:
    rows = np.split(np.arange(8, dtype=np.float32), np.cumsum(lengths)[:-1])
    observed = [np.zeros((n + 1, 2), np.float32) for n in lengths]
    return Episodes(observed, [r[:, None] for r in rows], list(rows), [r > 9 for r in rows])


def test_a_fingerprint_sees_where_episodes_end_and_every_number() -> None:
    one, other, same = (fingerprint(["a-v0"], e) for e in (episodes(3, 5), episodes(5, 3), episodes(3, 5)))
    assert one == same
    assert {name for name in one if one[name] != other[name]} == {"observations", "actions", "rewards", "terminations"}
    changed = episodes(3, 5)
    changed.terminations[1][-1] = True
    assert {name for name in one if one[name] != fingerprint(["a-v0"], changed)[name]} == {"terminations"}
