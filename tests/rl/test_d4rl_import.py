"""D4RL files as Minari datasets: where episodes end, what is dropped, and what is refused."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from egd.errors import UserError

gym = pytest.importorskip("gymnasium")
h5py = pytest.importorskip("h5py")
minari = pytest.importorskip("minari")
d4rl_import = import_module("rl.data.d4rl_import")  # after the skips: it imports what they look for
minari_store = import_module("rl.data.minari_store")
import_hdf5 = d4rl_import.import_hdf5

OBS, ACT = 3, 2


@pytest.fixture(autouse=True)
def datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "minari"
    root.mkdir()
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(root))
    return root


def _rows(n: int, *, terminals: tuple[int, ...] = (), timeouts: tuple[int, ...] | None = None) -> dict[str, Any]:
    """A table of n rows: row i observes i, acts i / 100 and earns i + 0.5."""
    at = np.arange(n, dtype=np.float64)
    rows: dict[str, Any] = {
        "observations": np.repeat(at[:, None], OBS, 1),
        "actions": np.repeat(at[:, None] / 100, ACT, 1),
        "rewards": at + 0.5,
        "terminals": np.isin(at, terminals),
    }
    return rows if timeouts is None else {**rows, "timeouts": np.isin(at, timeouts)}


def _file(tmp_path: Path, rows: dict[str, Any]) -> Path:
    path = tmp_path / "data.hdf5"
    with h5py.File(path, "w") as file:
        for key, array in rows.items():
            file[key] = array
    return path


def _episodes(dataset_id: str) -> list[Any]:
    return list(minari.load_dataset(dataset_id).iterate_episodes())


def _seen(episode: Any) -> list[int]:
    return [int(x) for x in episode.observations[:, 0]]


def test_without_next_observations_a_timeout_loses_its_last_transition(tmp_path: Path) -> None:
    path = _file(tmp_path, {**_rows(10, terminals=(2,), timeouts=(6,)), "infos/qpos": np.zeros(10)})
    report = import_hdf5(path, "d4rl/test-v0")
    terminal, timeout, tail = _episodes("d4rl/test-v0")
    assert [_seen(e) for e in (terminal, timeout, tail)] == [[0, 1, 2, 2], [3, 4, 5, 6], [7, 8, 9]]
    assert terminal.terminations.tolist() == [False, False, True] and not terminal.truncations.any()
    assert timeout.truncations.tolist() == [False, False, True] and not timeout.terminations.any()
    assert tail.truncations.tolist() == [False, True]
    assert timeout.rewards.tolist() == [3.5, 4.5, 5.5]
    assert np.allclose(timeout.actions[:, 0], [0.03, 0.04, 0.05])
    returns = [0.5 + 1.5 + 2.5, 3.5 + 4.5 + 5.5, 7.5 + 8.5]
    assert report == d4rl_import.ImportReport("d4rl/test-v0", 3, 8, 2, pytest.approx(np.mean(returns)))


def test_next_observations_end_every_episode_and_nothing_is_dropped(tmp_path: Path) -> None:
    rows = _rows(7, terminals=(2,), timeouts=(4,))
    rows["next_observations"] = rows["observations"] + 100
    report = import_hdf5(_file(tmp_path, rows), "test-v0")
    assert [_seen(e) for e in _episodes("test-v0")] == [[0, 1, 2, 102], [3, 4, 104], [5, 6, 106]]
    assert (report.episodes, report.steps, report.dropped) == (3, 7, 0)


def test_a_row_both_terminal_and_timed_out_is_terminal(tmp_path: Path) -> None:
    import_hdf5(_file(tmp_path, _rows(3, terminals=(2,), timeouts=(2,))), "test-v0")
    (episode,) = _episodes("test-v0")
    assert episode.terminations[-1] and not episode.truncations.any()


def test_without_timeouts_episodes_end_every_max_steps_rows_since_their_start(tmp_path: Path) -> None:
    report = import_hdf5(_file(tmp_path, _rows(12, terminals=(1,))), "test-v0", max_steps=4)
    # Rows 0-1 terminal, 2-5 and 6-9 timed out, 10-11 the tail.
    assert [_seen(e) for e in _episodes("test-v0")] == [[0, 1, 1], [2, 3, 4, 5], [6, 7, 8, 9], [10, 11]]
    assert report.dropped == 3


def test_a_terminal_at_the_limit_stays_terminal(tmp_path: Path) -> None:
    import_hdf5(_file(tmp_path, _rows(4, terminals=(3,))), "test-v0", max_steps=4)
    (episode,) = _episodes("test-v0")
    assert _seen(episode) == [0, 1, 2, 3, 3] and episode.terminations[-1]


def test_an_episode_of_one_unfinished_row_is_dropped(tmp_path: Path) -> None:
    report = import_hdf5(_file(tmp_path, _rows(4, terminals=(2,), timeouts=())), "test-v0")
    assert (report.episodes, report.steps, report.dropped) == (1, 3, 1)


def test_spaces_and_types_without_an_environment(tmp_path: Path) -> None:
    import_hdf5(_file(tmp_path, _rows(4, terminals=(3,), timeouts=())), "test-v0")
    dataset = minari.load_dataset("test-v0")
    assert dataset.observation_space == gym.spaces.Box(-np.inf, np.inf, (OBS,), np.float32)
    assert dataset.action_space == gym.spaces.Box(-1, 1, (ACT,), np.float32)
    episode = dataset[0]
    assert episode.observations.dtype == episode.actions.dtype == episode.rewards.dtype == np.float32
    assert dataset.observation_space.contains(episode.observations[0])
    assert dataset.env_spec is None


def test_the_environment_gives_spaces_limit_and_comes_back(tmp_path: Path) -> None:
    rows = _rows(450)
    rows["actions"] = rows["actions"][:, :1]
    import_hdf5(_file(tmp_path, rows), "pendulum-v0", env_id="Pendulum-v1", env_kwargs={"g": 9.0})
    dataset = minari.load_dataset("pendulum-v0")
    env = dataset.recover_environment()
    assert env.spec.id == "Pendulum-v1" and env.unwrapped.g == 9.0
    assert dataset.action_space == env.action_space  # Box(-2, 2)
    assert [len(e.actions) for e in dataset.iterate_episodes()] == [199, 199, 49]


@pytest.mark.parametrize("key", ["observations", "actions", "rewards", "terminals"])
def test_a_missing_key_is_named(key: str, tmp_path: Path, datasets: Path) -> None:
    rows = _rows(4, timeouts=())
    del rows[key]
    with pytest.raises(UserError, match=f"lacks '{key}'.*it has: "):
        import_hdf5(_file(tmp_path, rows), "test-v0")
    assert list(datasets.iterdir()) == []


@pytest.mark.parametrize("key", ["observations", "actions", "terminals", "timeouts", "next_observations"])
def test_mismatching_lengths_are_named(key: str, tmp_path: Path) -> None:
    rows = _rows(6, timeouts=())
    rows["next_observations"] = rows["observations"]
    rows[key] = rows[key][:-1]
    with pytest.raises(UserError, match=f"'{key}' has 5 rows, not 6"):
        import_hdf5(_file(tmp_path, rows), "test-v0")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"actions": np.zeros(6)}, r"'actions' has shape \(6,\)"),
        ({"rewards": np.zeros((6, 2))}, r"'rewards' has shape \(6, 2\)"),
        ({"rewards": np.float64(1)}, r"'rewards' has shape \(\)"),
        ({"rewards": np.array([0, 1, np.nan, np.nan, 4, 5])}, r"'rewards'\[2\] is nan.* 1 more"),
        ({"terminals": np.array([0, 0, 0, 0, np.nan, 1])}, r"'terminals'\[4\] is nan"),
        ({"timeouts": np.array([0, 0, 2, 0, 0, 1])}, r"'timeouts'\[2\] is 2, neither 0 nor 1"),
        ({"observations": np.full((6, OBS), np.inf)}, r"'observations'\[0, 0\] is inf"),
        ({"next_observations": np.zeros((6, OBS + 1))}, "differ in width"),
        ({"actions": np.array([b"x"] * 6)}, "not numbers"),
    ],
)
def test_misshapen_arrays_are_named(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        import_hdf5(_file(tmp_path, {**_rows(6, timeouts=()), **change}), "test-v0")


def test_a_column_for_the_rewards_is_what_it_seems(tmp_path: Path) -> None:
    rows = _rows(3, terminals=(2,), timeouts=())
    import_hdf5(_file(tmp_path, {**rows, "rewards": rows["rewards"][:, None]}), "test-v0")
    assert _episodes("test-v0")[0].rewards.tolist() == [0.5, 1.5, 2.5]


def test_a_check_of_a_file_says_all_that_is_wrong(egd: Any, tmp_path: Path) -> None:
    path = _file(tmp_path, _rows(6, timeouts=()))
    assert egd("data", "check", path).exit_code == 0
    wrong = {"rewards": np.full(6, np.nan), "actions": np.zeros((5, ACT)), "timeouts": np.array([b"no"] * 6)}
    result = egd("data", "check", _file(tmp_path, {**_rows(6), **wrong}))
    assert result.exit_code == 2
    for part in ("'rewards'[0] is nan", "'actions' has 5 rows, not 6", "'timeouts' has type"):
        assert part in result.output


def test_a_truncated_file_and_one_that_points_elsewhere(tmp_path: Path) -> None:
    path = _file(tmp_path, _rows(400, timeouts=()))
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(UserError, match=r"cannot be read as HDF5.*truncated"):
        import_hdf5(path, "test-v0")
    rows = _rows(4, timeouts=())
    del rows["rewards"]
    path = _file(tmp_path, rows)
    with h5py.File(path, "a") as file:
        file["rewards"] = h5py.ExternalLink("other.hdf5", "rewards")
    with pytest.raises(UserError, match=r"'rewards' is a link to another file, 'other.hdf5'"):
        import_hdf5(path, "test-v0")


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no file"):
        import_hdf5(tmp_path / "absent.hdf5", "test-v0")
    text = tmp_path / "text.hdf5"
    text.write_text("not HDF5")
    with pytest.raises(UserError, match=r"cannot be read as HDF5"):
        import_hdf5(text, "test-v0")
    with pytest.raises(UserError, match="no complete transition"):
        import_hdf5(_file(tmp_path, _rows(0, timeouts=())), "test-v0")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dataset_id": "no version"}, "name-v0"),
        ({"dataset_id": "noversion"}, "name-v0"),
        ({}, "no 'timeouts': give max_steps"),
        ({"max_steps": 0}, "max_steps is 0"),
        ({"env_id": "Absent-v0"}, "'Absent-v0' cannot be made"),
        ({"env_id": "CartPole-v1"}, "must be a Box"),
        ({"env_id": "Pendulum-v1"}, "a row of 'actions' has shape"),
        ({"env_id": "Pendulum-v1", "env_kwargs": {"gravity": 1}}, "cannot be made with {'gravity': 1}"),
        ({"env_kwargs": {"g": 1}}, "without an env_id"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str, tmp_path: Path, datasets: Path) -> None:
    with pytest.raises(UserError, match=message):
        import_hdf5(_file(tmp_path, _rows(4)), **{"dataset_id": "test-v0", **arguments})
    assert list(datasets.iterdir()) == []


def test_an_existing_dataset_is_kept(tmp_path: Path) -> None:
    path = _file(tmp_path, _rows(4, terminals=(3,), timeouts=()))
    import_hdf5(path, "test-v0")
    with pytest.raises(UserError, match="already exists"):
        import_hdf5(path, "test-v0")
    assert len(_episodes("test-v0")) == 1


def test_a_write_that_breaks_off_leaves_no_dataset(tmp_path: Path, datasets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _file(tmp_path, _rows(6, terminals=(2, 5), timeouts=()))
    update = minari_store.MinariStorage.update_metadata
    seen: list[bool] = []

    def interrupted(self: Any, metadata: dict[str, Any]) -> None:
        seen.append((datasets / "test-v0").exists() or bool(minari.list_local_datasets()))
        if "total_steps" in metadata:  # the last thing a write does
            raise KeyboardInterrupt
        update(self, metadata)

    with monkeypatch.context() as patch:
        patch.setattr(minari_store.MinariStorage, "update_metadata", interrupted)
        with pytest.raises(KeyboardInterrupt):
            import_hdf5(path, "test-v0")
    assert seen == [False, False] and list(datasets.iterdir()) == []
    assert import_hdf5(path, "test-v0").episodes == 2


GRID = ((0, 0, 0), (1, 1, 0), (0, 0, 0))
"""D4RL's U_MAZE within its outer wall: 1 is a wall."""


def _d4rl_ball(start: tuple[float, float], actions: Any) -> Any:
    """(T + 1, 4) positions and velocities of D4RL's point maze under ``actions`` (T, 2), built from the facts of its
    d4rl/pointmaze/maze_model.py: x along the rows, walls of cell (i, j) at (i + 1, j + 1), the ball at 1.2 plus its joints.
    """
    mujoco = pytest.importorskip("mujoco")
    free = {(i + 1, j + 1) for i, row in enumerate(GRID) for j, wall in enumerate(row) if not wall}
    walls = [(i, j) for i in range(5) for j in range(5) if (i, j) not in free]
    boxes = "".join(f'<geom conaffinity="1" type="box" pos="{i + 1} {j + 1} 0" size=".5 .5 .2"/>' for i, j in walls)
    joints = "".join(f'<joint name="{n}" type="slide" axis="{a}"/>' for n, a in (("x", "1 0 0"), ("y", "0 1 0")))
    motors = "".join(f'<motor joint="{n}" ctrlrange="-1 1" ctrllimited="true" gear="100"/>' for n in "xy")
    ball = f'<body pos="1.2 1.2 0"><geom type="sphere" size=".1" contype="1"/>{joints}</body>'
    model = mujoco.MjModel.from_xml_string(
        '<mujoco><compiler inertiafromgeom="true"/><option timestep=".01" gravity="0 0 0" iterations="20" integrator="Euler"/>'
        '<default><joint damping="1" limited="false"/>'
        '<geom friction=".5 .1 .1" density="1000" margin=".002" condim="1" contype="2" conaffinity="1"/></default>'
        f"<worldbody>{boxes}{ball}</worldbody><actuator>{motors}</actuator></mujoco>"
    )
    data = mujoco.MjData(model)
    data.qpos[:] = start
    mujoco.mj_forward(model, data)
    seen = [np.concatenate([data.qpos, data.qvel])]
    for action in actions:
        data.qvel[:] = np.clip(data.qvel, -5, 5)
        data.ctrl[:] = action
        mujoco.mj_step(model, data)
        seen.append(np.concatenate([data.qpos, data.qvel]))
    return np.array(seen)


def _maze_file(tmp_path: Path, observations: Any, actions: Any, **more: Any) -> Path:
    steps = len(actions)
    rows = {
        "observations": observations[:steps],
        "actions": actions,
        "rewards": np.zeros(steps),
        "terminals": np.zeros(steps, bool),
    }
    return _file(tmp_path, {**rows, "timeouts": np.arange(steps) == steps - 1, **more})


def test_a_maze2d_file_is_the_walk_of_its_environment(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pull = np.repeat(rng.uniform(-1, 1, (12, 2)), 25, axis=0).astype(np.float32)  # long enough to meet walls
    observations = _d4rl_ball((1.0, 1.0), pull)
    assert np.ptp(observations[:, 0]) > 1 and np.ptp(observations[:, 1]) > 1, "the walk does not leave its cell"
    path = _maze_file(tmp_path, observations, pull, next_observations=observations[1:])
    report = import_hdf5(path, "D4RL/pointmaze/umaze-v2")
    assert (report.episodes, report.steps, report.dropped) == (1, len(pull), 0)
    (episode,) = _episodes("D4RL/pointmaze/umaze-v2")
    env = minari.load_dataset("D4RL/pointmaze/umaze-v2").recover_environment().unwrapped
    env.reset(seed=0)
    first = episode.observations[0].astype(np.float64)
    env._sim.point_env.set_state(first[:2], first[2:])
    played = [env.step(action)[0] for action in episode.actions]
    np.testing.assert_allclose(played, episode.observations[1:], atol=1e-3)


def test_a_maze2d_goal_is_in_d4rls_cell(tmp_path: Path) -> None:
    from rl.data.episodes import load_episodes, relabel
    from rl.tasks import find_task

    walk = np.array([[2.8, 0.8, 0, 0], [1.8, 2.8, 0, 0], [0.8, 0.8, 0, 0]])  # the middle of cells (3, 1), (2, 3), (1, 1)
    path = _maze_file(tmp_path, walk, np.zeros((3, 2)), next_observations=walk)
    import_hdf5(path, "D4RL/pointmaze/umaze-v2")
    task = find_task("maze2d-umaze")
    episodes = relabel(task, load_episodes(task.datasets, task.observation_keys))
    assert episodes.rewards[0].tolist() == [0, 1, 1]  # the goal's cell is (1, 1)
    np.testing.assert_allclose(episodes.observations[0][:3, :2], [[-1, -1], [1, 0], [-1, 1]], atol=1e-6)


def test_maze_files_that_do_not_fit_are_refused(tmp_path: Path, datasets: Path) -> None:
    rows = np.array([[1.0, 1.0, 0, 0], [3.0, 1.0, 0, 0], [2.0, 1.0, 0, 0]])  # the last in the wall
    cases = {
        "D4RL/pointmaze/umaze-v2": (rows, np.zeros((3, 2)), "1 of 3 positions lie in a wall of 'umaze'.*row 2"),
        "D4RL/pointmaze/medium-v2": (-rows, np.zeros((3, 2)), "3 of 3 positions"),
        "D4RL/antmaze/umaze-v1": (np.zeros((3, 29)), np.zeros((3, 8)), "another ant"),
    }
    for name, (observations, actions, message) in cases.items():
        with pytest.raises(UserError, match=message):
            import_hdf5(_maze_file(tmp_path, observations, actions), name)
    with pytest.raises(UserError, match="shape"):
        import_hdf5(_maze_file(tmp_path, np.zeros((3, 6)), np.zeros((3, 2))), "D4RL/pointmaze/umaze-v2")
    assert list(datasets.iterdir()) == []
    assert import_hdf5(_maze_file(tmp_path, np.zeros((3, 29)), np.zeros((3, 8))), "mine/ants-v0").steps == 2


def test_a_dataset_is_imported_by_one_process(tmp_path: Path) -> None:
    path = _file(tmp_path, _rows(4, terminals=(3,), timeouts=()))
    with minari_store.making("mine/table-v0"), pytest.raises(UserError, match="'mine/table-v0' is in use by process"):
        import_hdf5(path, "mine/table-v0")
    assert import_hdf5(path, "mine/table-v0").steps == 4
    assert not list((tmp_path / "minari").glob(".*")), "no lock stays"
