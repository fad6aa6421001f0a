"""Datasets that are damaged, misshapen or hostile: refused by name, and read right where they are merely unusual."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import h5py
import numpy as np
import pytest
import torch

from egd.errors import UserError
from egd.training.learners import train
from rl.agents import agent_class
from rl.data.d4rl_import import import_hdf5
from rl.data.episodes import Episodes, load_episodes, to_offline_data
from rl.data.health import problems_of
from rl.data.minari_store import episode_buffer, write_dataset
from rl.data.stored import place_of
from rl.runs.recipe import typed

ID = "mine/small-v0"
OBSERVATIONS = [np.arange(8.0).reshape(4, 2), np.array([[10.0, 20], [11, 21]])]
ACTIONS = [np.array([[0.1], [0.2], [0.3]]), np.array([[-1.0]])]
REWARDS = [np.array([1.0, 2, 3]), np.array([4.0])]
Change = Callable[[h5py.File], object]


@pytest.fixture(autouse=True)
def datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    return tmp_path / "minari"


def stored(space: gym.Space[Any] | None = None, observations: Any = None, spec: Any = None, **actions: Any) -> Path:
    """Two episodes, of three steps and of one, the last of which is terminal. Its folder."""
    seen = OBSERVATIONS if observations is None else observations
    buffers = [episode_buffer(*e, terminal=i == 1) for i, e in enumerate(zip(seen, ACTIONS, REWARDS, strict=True))]  # type: ignore[arg-type]
    box = gym.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    act = actions.get("act") or gym.spaces.Box(-1, 1, (1,), np.float32)
    write_dataset(ID, buffers, space or box, act, spec, {})
    return place_of(ID) / "data"


def put(name: str, values: Any, **settings: Any) -> Change:
    """Another array in its place."""

    def change(file: h5py.File) -> None:
        del file[name]
        file.create_dataset(name, data=values, **settings)

    return change


def changed(change: Change, folder: Path | None = None) -> None:
    with h5py.File((folder or stored()) / "main_data.hdf5", "r+") as file:
        change(file)


def elsewhere(file: h5py.File) -> None:
    """Rewards that are the bytes of another file of the host."""
    secret = Path(file.filename).with_name("secret")
    secret.write_bytes(np.ones(3).tobytes())
    del file["episode_0/rewards"]
    file.create_dataset("episode_0/rewards", (3,), "f8", external=[(str(secret), 0, 24)])


def virtual(file: h5py.File) -> None:
    del file["episode_0/rewards"]
    layout = h5py.VirtualLayout((3,), "f8")
    layout[:] = h5py.VirtualSource("/other.hdf5", "rewards", (3,))
    file["episode_0"].create_virtual_dataset("rewards", layout)


def linked(link: Any) -> Change:
    def change(file: h5py.File) -> None:
        del file["episode_0/actions"]
        file["episode_0/actions"] = link

    return change


def declared(file: h5py.File) -> None:
    """A hundred thousand million rows in a file of some kilobytes."""
    del file["episode_0/rewards"]
    file.create_dataset("episode_0/rewards", (10**11,), "f8", chunks=(1000,))


def sparse(file: h5py.File) -> None:
    """One piece of ten thousand is there."""
    del file["episode_0/rewards"]
    file.create_dataset("episode_0/rewards", (10**7,), "f8", chunks=(1000,))[0] = 1


def bomb(file: h5py.File) -> None:
    """Rows that unpack to half a gigabyte."""
    del file["episode_0/observations"]
    rows = file.create_dataset("episode_0/observations", (2**25, 2), "f8", chunks=(2**20, 2), compression="gzip")
    rows[:4] = 0


def empty(file: h5py.File) -> None:
    for name, shape in (("observations", (1, 2)), ("actions", (0, 1)), ("rewards", 0), ("terminations", 0), ("truncations", 0)):
        put(f"episode_1/{name}", np.zeros(shape))(file)
    file["episode_1"].attrs["total_steps"] = 0


ONES = np.ones(3)
REFUSED: dict[str, tuple[Change, str]] = {
    "short rewards": (put("episode_0/rewards", np.ones(2)), r"episode 0: rewards has 2 rows, not 3"),
    "long terminations": (put("episode_0/terminations", np.zeros(4)), r"episode 0: terminations has 4 rows, not 3"),
    "no final observation": (put("episode_0/observations", np.zeros((3, 2))), r"episode 0: observations has 3 rows, not 4"),
    "empty episode": (empty, "episode 1 has no steps"),
    "wide rewards": (put("episode_0/rewards", np.ones((3, 2))), r"episode 0: rewards has shape \(3, 2\)"),
    "flat actions": (put("episode_0/actions", ONES), r"episode 0: actions has shape \(3,\), not \(3, 1\)"),
    "text rewards": (put("episode_0/rewards", np.array([b"1", b"2", b"3"])), "episode 0: rewards has type .*not numbers"),
    "complex actions": (put("episode_0/actions", 1j * ONES[:, None]), "episode 0: actions has type complex128, not numbers"),
    "NaN reward": (put("episode_0/rewards", [1, np.nan, 2]), r"episode 0: rewards\[1\] is nan"),
    "infinite observation": (put("episode_1/observations", [[0, 1], [-np.inf, 1]]), r"episode 1: observations\[1, 0\] is -inf"),
    "huge observation": (put("episode_1/observations", [[0, 1], [1e30, 1]]), r"episode 1: observations\[1, 0\] is 1e\+30"),
    "NaN action": (put("episode_1/actions", [[np.nan]]), r"episode 1: actions\[0, 0\] is nan"),
    "NaN terminal": (put("episode_1/terminations", [np.nan]), r"episode 1: terminations\[0\] is nan"),
    "half a terminal": (put("episode_1/terminations", [0.5]), r"episode 1: terminations\[0\] is 0.5, neither 0 nor 1"),
    "goes on": (put("episode_0/terminations", [True, False, False]), r"terminations\[0\] is true, but 2 more steps follow"),
    "no rewards": (lambda f: f["episode_0"].pop("rewards"), "episode 0: rewards is missing"),
    "no episode": (lambda f: f.pop("episode_1"), "counts 2 episodes .*has 1"),
    "an episode more": (lambda f: f.copy("episode_1", "episode_2"), "counts 2 episodes .*has 3"),
    "an array for a group": (put("episode_1", ONES), "episode 1 is an array, not a group"),
    "noted steps": (lambda f: f["episode_0"].attrs.update(total_steps=5), "total_steps is noted as 5, but it has 3"),
    "external storage": (elsewhere, "episode 0: rewards lies in another file, '.*secret'"),
    "virtual": (virtual, "episode 0: rewards is put together from other files"),
    "external link": (linked(h5py.ExternalLink("/etc/passwd", "/x")), "actions is a link to another file, '/etc/passwd'"),
    "soft link": (linked(h5py.SoftLink("/episode_1/actions")), "actions is a link to elsewhere"),
    "10^11 rows": (declared, "episode 0: rewards has 100000000000 entries, 745 GiB"),
    "one row of many": (sparse, "episode 0: rewards declares 10000000 rows, of which the file does not hold all"),
    "compression bomb": (bomb, "episode 0: observations has 33554432 x 2 entries, 0.5 GiB"),
    "none of its rows": (
        lambda f: (f["episode_0"].pop("rewards"), f.create_dataset("episode_0/rewards", (3,), "f8", chunks=(1,))),
        "rewards declares 3 rows, of which the file does not hold all",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_wrong_in_an_episode_is_named(case: str) -> None:
    change, message = REFUSED[case]
    changed(change)
    with pytest.raises(UserError, match=f"(?s){ID}: .*{message}.*egd data check {ID}"):
        load_episodes([ID])


def test_a_check_says_all_that_is_wrong_at_once(egd: Any) -> None:
    folder = stored(spec=gym.make("MountainCarContinuous-v0").spec)  # of other sizes, but that is another matter
    assert problems_of(ID) == {ID: []}
    assert egd("data", "check", ID).exit_code == 0
    for case in ("NaN reward", "no final observation", "NaN terminal"):
        changed(REFUSED[case][0], folder)
    changed(put("episode_1/actions", [[1.5]]), folder)
    result = egd("data", "check", ID)
    assert result.exit_code == 2
    for part in ("rewards[1] is nan", "observations has 3 rows, not 4", "terminations[0] is nan"):
        assert part in result.output, result.output
    (found,) = problems_of(ID).values()
    assert len(found) == 3  # of the actions' range only sound episodes are asked
    changed(put("episode_1/terminations", [1]), folder)
    assert any("actions[0] reaches 1.5" in problem for problem in problems_of(ID)[ID])


METADATA: dict[str, tuple[dict[str, Any], str]] = {
    "steps": ({"total_steps": 5}, "counts 5 steps, main_data.hdf5 has 4"),
    "episodes": ({"total_episodes": 10**9}, "counts 1000000000 episodes .*has 2"),
    "text": ({"total_episodes": "2"}, "metadata.json, total_episodes"),
    "arrow": ({"data_format": "arrow"}, "metadata.json, data_format: Input should be 'hdf5'"),
    "version": ({"minari_version": "99.0"}, "written by Minari 99.0"),
    "no space": ({"action_space": None}, "metadata.json, action_space"),
    "large space": (
        {"observation_space": json.dumps({"type": "Box", "shape": [10**9], "dtype": "float32", "low": 0, "high": 1})},
        "the observation space of metadata.json is none .*1000000000",
    ),
    "strange space": ({"action_space": '{"type": "Graph"}'}, "the action space of metadata.json is none"),
    "deep space": (
        {"observation_space": '{"type": "Tuple", "subspaces": [' * 2000 + "]}" * 2000},
        "observation space .*is none",
    ),
}


@pytest.mark.parametrize("case", METADATA)
def test_metadata_that_are_wrong_are_named(case: str) -> None:
    change, message = METADATA[case]
    path = stored() / "metadata.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UserError, match=f"(?s){message}"):
        load_episodes([ID])


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"\0" * len(b)])
@pytest.mark.parametrize("name", ["main_data.hdf5", "metadata.json"])
def test_truncated_and_overwritten_files_are_named(name: str, damage: Callable[[bytes], bytes]) -> None:
    path = stored() / name
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=f"{name}.* cannot be read"):
        load_episodes([ID])


def test_what_is_merely_unusual_is_read_right() -> None:
    folder = stored()
    changed(put("episode_0/rewards", np.array([[1], [2], [3]], np.int16)), folder)
    changed(put("episode_1/terminations", np.array([[1]], np.uint8)), folder)
    changed(put("episode_1/observations", np.array([[10, 20], [11, 21]])), folder)
    assert problems_of(ID) == {ID: []}
    read = load_episodes([ID])
    for got, want in ((read.observations, OBSERVATIONS), (read.actions, ACTIONS), (read.rewards, REWARDS)):
        for one, other in zip(got, want, strict=True):
            assert one.dtype == np.float32
            np.testing.assert_array_equal(one, other.astype(np.float32))
    batch = to_offline_data(read, 0.0, standardise=False).transitions
    assert batch.state.tolist() == [[0, 1], [2, 3], [4, 5], [10, 20]]
    assert batch.next_state.tolist() == [[2, 3], [4, 5], [6, 7], [11, 21]]
    torch.testing.assert_close(batch.action, torch.tensor([[0.1], [0.2], [0.3], [-1.0]]))
    assert batch.reward.tolist() == [1, 2, 3, 4] and batch.terminal.tolist() == [0, 0, 0, 1]


def test_a_critic_of_one_member_trains_the_same_on_rewards_in_a_column() -> None:
    """Of (T, 1), with one member, targets would broadcast to (B, B) without an error."""
    folder, found = stored(), []
    for rewards in (np.array([1.0, 2, 3]), np.array([[1.0], [2], [3]])):
        changed(put("episode_0/rewards", rewards), folder)
        data = to_offline_data(load_episodes([ID]), 0.0)
        assert data.transitions.reward.shape == (4,)
        tree = {"experiment": "offline_rl", "agent": "iql", "task": ID, "critic": {"width": 8, "layers": 1, "ensemble": 1}}
        agent = agent_class("iql")(typed(tree, "test"), data, torch.device("cpu"))
        (critic,) = (phase.learner for phase in agent.phases() if phase.name == "critic")
        loss = train(critic, 3, torch.Generator().manual_seed(0))["q_loss"]
        found.append({**critic.state(), "loss": loss})
    one, other = found
    assert one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_a_large_offset_does_not_spoil_the_statistics() -> None:
    rng = np.random.default_rng(0)
    rows = (1e5 + rng.normal(size=(20_001, 3)) * [1, 0.1, 0]).astype(np.float32)
    space = gym.spaces.Box(-np.inf, np.inf, (3,), np.float32)
    buffer = episode_buffer(rows, np.zeros((20_000, 1)), np.zeros(20_000, np.float32))
    write_dataset(ID, [buffer], space, gym.spaces.Box(-1, 1, (1,), np.float32), None, {})
    data = to_offline_data(load_episodes([ID]), 0.0)
    exact = rows[:-1].astype(np.float64)
    np.testing.assert_array_equal(data.state_mean.numpy(), exact.mean(0).astype(np.float32))
    np.testing.assert_allclose(data.state_std.numpy(), exact.std(0, ddof=1) + 1e-3, rtol=1e-6)
    assert data.transitions.state[:, 2].eq(0).all(), "a constant entry is 0"
    assert data.transitions.state[:, 0].std() == pytest.approx(1 / 1.001, rel=1e-3)


def test_a_spread_that_float32_cannot_hold_is_refused(tmp_path: Path) -> None:
    """Around 1e7 float32 knows whole numbers only: N(0, 1) would become some seven steps, the same at every evaluation."""
    rng = np.random.default_rng(0)
    rows = np.stack([rng.normal(size=401), 1e7 + rng.normal(size=401), np.full(401, 1e7 + 0.3)], 1)
    buffer = episode_buffer(rows, np.zeros((400, 1)), np.zeros(400, np.float32))
    space, act = gym.spaces.Box(-np.inf, np.inf, (3,), np.float64), gym.spaces.Box(-1, 1, (1,), np.float32)
    write_dataset(ID, [buffer], space, act, None, {})
    message = r"entry 1 lies around 1e\+07 and spreads by (0.9|1).* only, of which float32.* loses up to 0.5"
    with pytest.raises(UserError, match=message):
        load_episodes([ID])
    (problem,) = problems_of(ID)[ID]
    assert "entry 1 lies around" in problem, "a constant entry loses nothing that anything could be learned from"
    with pytest.raises(UserError, match=message):
        to_offline_data(Episodes([rows], [np.zeros((400, 1))], [np.zeros(400)], [np.zeros(400, bool)]), 0.0)
    with h5py.File(tmp_path / "file.hdf5", "w") as file:
        file.update({"observations": rows[1:], "actions": np.zeros((400, 1)), "rewards": np.zeros(400)})
        file.update({"terminals": np.zeros(400, bool), "timeouts": np.zeros(400, bool)})
    with pytest.raises(UserError, match=message):
        import_hdf5(tmp_path / "file.hdf5", "mine/other-v0")
    near = Episodes([rows - [0, 1e7, 0]], [np.zeros((400, 1))], [np.zeros(400)], [np.zeros(400, bool)])
    assert to_offline_data(near, 0.0).transitions.state[:, 1].std() == pytest.approx(1 / 1.001, rel=1e-3)


@pytest.mark.parametrize("missing", [("metadata.json",), ("main_data.hdf5",), ("metadata.json", "main_data.hdf5")])
def test_a_part_of_a_dataset_is_called_that(egd: Any, missing: tuple[str, ...]) -> None:
    folder = stored()
    for name in missing:
        (folder / name).unlink()
    lacks = " and ".join(f"data/{name}" for name in missing)
    with pytest.raises(UserError, match=rf"{ID} is incomplete: .* lacks {lacks}; put back.*\nRemedies: .*minari download"):
        load_episodes([ID])
    (folder / "part.incomplete").touch()
    for command in (["check", ID], ["describe", ID], ["import", folder / "x.hdf5", "--id", ID]):
        result = egd("data", *command)
        assert result.exit_code == 2 and f"lacks {lacks} (files of an interrupted download are there)" in result.output, command


@pytest.mark.parametrize(
    "name", ["../../etc/x-v0", "/etc/x-v0", "a/../x-v0", "a//b-v0", "x", "a/b-v0\n", "n" * 300 + "-v0", "a\0-v0"]
)
def test_what_is_no_id_is_no_path(name: str, datasets: Path) -> None:
    for use in (lambda: load_episodes([name], download=False), lambda: write_dataset(name, [], None, None, None, {})):  # type: ignore[arg-type]
        with pytest.raises(UserError, match="is no dataset id"):
            use()
    assert not datasets.exists()


def test_a_store_that_is_none_is_named(egd: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    for value, message in (("", "it is empty"), (str(tmp_path / "file"), "is not a folder"), ("a\0b"[:1] * 5000, "no folder")):
        monkeypatch.setenv("MINARI_DATASETS_PATH", value)
        for command in (["list"], ["describe", ID], ["check", ID], ["generate", "egd/maze2d/umaze-v5", "--steps", "10"]):
            result = egd("data", *command)
            assert result.exit_code == 2 and message in result.output, (command, result.output)
