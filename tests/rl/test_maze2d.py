"""The made-on-the-spot maze2d: the task, the planner, and the data it leaves."""

from __future__ import annotations

from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from egd.errors import UserError

gym = pytest.importorskip("gymnasium")
minari = pytest.importorskip("minari")
pytest.importorskip("gymnasium_robotics")
antmaze, maze2d, mazes, waypoints = (  # after the skips
    import_module(f"rl.envs.{name}") for name in ("antmaze", "maze2d", "mazes", "waypoints")
)
generate = import_module("rl.data.generators.maze2d").maze2d

STEPS = 1500


@pytest.fixture(autouse=True)
def datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    return tmp_path


def _episodes(dataset_id: str) -> list[Any]:
    return list(minari.load_dataset(dataset_id).iterate_episodes())


@pytest.mark.parametrize(("name", "goal"), [("umaze", (-1, 1)), ("medium", (2.5, -2.5)), ("large", (3.5, -3))])
def test_the_goal_is_d4rls_cell(name: str, goal: tuple[float, float]) -> None:
    assert maze2d.goal_xy(name).tolist() == list(goal)
    kinds = [kind for row in maze2d.MAPS[name] for kind in row]
    assert kinds.count("g") == 1 and 0 not in kinds


def test_cells_agree_with_pointmaze() -> None:
    maze = maze2d.Maze2DEnv("large")._sim.maze
    for cell in mazes.free_cells("large"):
        centre = mazes.centre("large", cell)
        assert np.array_equal(centre, maze.cell_rowcol_to_xy(cell))
        assert mazes.cell_at("large", centre + 0.4) == tuple(maze.cell_xy_to_rowcol(centre + 0.4)) == cell


def test_resets_repeat_by_seed_and_leave_the_goal_where_it_is() -> None:
    env = maze2d.make_env("medium")
    starts = [env.reset(seed=seed)[0] for seed in range(20)]
    assert all(np.array_equal(env.reset(seed=seed)[0], start) for seed, start in enumerate(starts))
    assert len({tuple(start) for start in starts}) == 20
    for seed in range(20):
        env.reset(seed=seed)
        sim = env.unwrapped._sim
        assert np.array_equal(sim.goal, maze2d.goal_xy("medium"))
        assert np.array_equal(sim.model.site_pos[sim.target_site_id][:2], sim.goal), "the picture shows another goal"


def test_starts_cover_the_cells_but_not_the_goals() -> None:
    env = maze2d.make_env("umaze")
    cells = {mazes.cell_at("umaze", env.reset(seed=seed)[0][:2]) for seed in range(60)}
    assert cells == set(mazes.cells("umaze", "r"))


def test_reward_is_one_within_half_a_metre() -> None:
    goal = maze2d.goal_xy("umaze")
    points = goal + np.array([[0.0, 0.0], [0.48, 0.0], [0.0, -0.5], [0.51, 0.0], [0.4, 0.4]])
    assert maze2d.reward_at(points, goal).tolist() == [1, 1, 1, 0, 0]
    dense = maze2d.reward_at(points, goal, dense=True)
    assert np.allclose(dense, np.exp(-np.linalg.norm(points - goal, axis=1)))


@pytest.mark.parametrize("dense", [False, True])
def test_the_environment_rewards_the_position_it_returns(dense: bool) -> None:
    env = maze2d.make_env("umaze", dense=dense)
    observation, _ = env.reset(seed=3)
    policy, rewards = waypoints.waypoint_controller("umaze"), []
    for _ in range(300):
        observation, reward, terminated, truncated, _ = env.step(policy(observation))
        assert env.observation_space.contains(observation) and not terminated
        assert reward == maze2d.reward_at(observation[:2], maze2d.goal_xy("umaze"), dense=dense)
        rewards.append(reward)
    assert truncated and min(rewards) < 0.5 < max(rewards)


def test_gym_make_and_the_step_limits() -> None:
    maze2d.register()
    maze2d.register()
    for name, limit in maze2d.STEP_LIMITS.items():
        env = gym.make(maze2d.ENV_ID, map_name=name, dense=True)
        assert env.spec.max_episode_steps == limit
        assert env.unwrapped.map_name == name and env.unwrapped.dense
    env = maze2d.make_env("umaze", max_episode_steps=2)
    env.reset(seed=0)
    assert [env.step(np.zeros(2, np.float32))[3] for _ in range(2)] == [False, True]


def test_values_fall_by_the_discount_a_move_and_are_zero_in_walls() -> None:
    free = np.array([[kind != 1 for kind in row] for row in maze2d.MAPS["umaze"]])
    values = waypoints.value_iteration(free, (1, 1))
    walk = [(1, 1), (1, 2), (1, 3), (2, 3), (3, 3), (3, 2), (3, 1)]  # the U from end to end
    assert np.allclose([values[cell] for cell in walk], 0.99 ** np.arange(7))
    assert (values[~free] == 0).all()


@pytest.mark.parametrize("name", ["umaze", "medium", "large"])
def test_the_controller_reaches_the_goal_and_stays(name: str) -> None:
    env = maze2d.make_env(name)
    for seed in range(3):
        policy = waypoints.waypoint_controller(name, noise=0.5, rng=np.random.default_rng(seed))
        observation, _ = env.reset(seed=seed)
        truncated, rewards = False, []
        while not truncated:
            observation, reward, _, truncated, _ = env.step(policy(observation))
            rewards.append(reward)
        assert rewards[-50:] == [1.0] * 50


def test_a_goal_in_a_wall_is_refused() -> None:
    with pytest.raises(UserError, match="wall"):
        waypoints.waypoint_controller("umaze", goal=np.array([0.0, 0.0]))


@pytest.mark.parametrize("dense", [False, True])
def test_data_is_one_chained_walk_with_the_fixed_goals_rewards(dense: bool) -> None:
    calls: list[int] = []
    assert generate("egd/walk-v0", steps=STEPS, dense=dense, progress=calls.append) == "egd/walk-v0"
    episodes = _episodes("egd/walk-v0")
    assert sum(len(e.actions) for e in episodes) == STEPS and len(episodes) > 5
    assert calls == [1000]
    for episode, following in pairwise(episodes):
        assert np.array_equal(episode.observations[-1], following.observations[0])
    for episode in episodes:
        assert episode.observations.dtype == episode.actions.dtype == episode.rewards.dtype == np.float32
        assert np.abs(episode.actions).max() <= 1
        assert not episode.terminations.any()
        assert episode.truncations.tolist() == [False] * (len(episode.actions) - 1) + [True]
        rewards = maze2d.reward_at(episode.observations[1:, :2], maze2d.goal_xy("umaze"), dense=dense)
        assert np.array_equal(episode.rewards, rewards.astype(np.float32))


def test_replaying_the_actions_repeats_the_data() -> None:
    generate("walk-v0", steps=500, seed=7)
    episodes = _episodes("walk-v0")
    env = minari.load_dataset("walk-v0").recover_environment().unwrapped
    observation, _ = env.reset(seed=7)
    assert np.array_equal(observation, episodes[0].observations[0])
    for episode in episodes:  # no reset between them
        for action, recorded, rewarded in zip(episode.actions, episode.observations[1:], episode.rewards, strict=True):
            observation, reward, *_ = env.step(action)
            assert np.array_equal(observation, recorded) and reward == rewarded


def test_data_repeats_by_seed() -> None:
    for dataset_id, seed in (("a-v0", 0), ("b-v0", 0), ("c-v0", 1)):
        generate(dataset_id, steps=300, seed=seed)
    first, same, other = (_episodes(i) for i in ("a-v0", "b-v0", "c-v0"))
    assert [len(e.actions) for e in first] == [len(e.actions) for e in same]
    assert all(np.array_equal(a.observations, b.observations) for a, b in zip(first, same, strict=True))
    assert not np.array_equal(first[0].observations[0], other[0].observations[0])


def test_data_covers_the_maze_and_the_goal() -> None:
    generate("walk-v0", steps=4000)
    episodes = _episodes("walk-v0")
    positions = np.concatenate([e.observations[:, :2] for e in episodes])
    assert {mazes.cell_at("umaze", p) for p in positions} == set(mazes.free_cells("umaze"))
    assert 0.02 < np.concatenate([e.rewards for e in episodes]).mean() < 0.4


def test_the_environment_comes_back_from_the_dataset() -> None:
    generate("egd/medium-v0", map_name="medium", steps=50, dense=True)
    dataset = minari.load_dataset("egd/medium-v0")
    env = dataset.recover_environment()
    assert env.unwrapped.map_name == "medium" and env.unwrapped.dense
    assert env.spec.max_episode_steps == 600
    assert env.observation_space == dataset.observation_space and env.action_space == dataset.action_space


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"map_name": "umase"}, "did you mean 'umaze'"),
        ({"steps": 0}, "steps is 0"),
        ({"noise": -1.0}, "noise is -1.0"),
        ({"dataset_id": "no version"}, "name-v0"),
        ({"dataset_id": "noversion"}, "name-v0"),
        ({"dataset_id": "../up-v0"}, "name-v0"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str, datasets: Path) -> None:
    with pytest.raises(UserError, match=message):
        generate(**{"dataset_id": "walk-v0", "steps": 10, **arguments})
    assert list(datasets.iterdir()) == []


def test_an_existing_dataset_is_not_overwritten() -> None:
    generate("walk-v0", steps=10)
    with pytest.raises(UserError, match="already exists"):
        generate("walk-v0", steps=10)


def test_an_interrupted_walk_leaves_no_dataset() -> None:
    def stop(done: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate("egd/walk-v0", steps=2000, progress=stop)
    assert minari.list_local_datasets() == {}
    generate("egd/walk-v0", steps=10)


DRAWING = """
#######
#OOOOO#
#O###O#
#OGO#O#
#######
"""


@pytest.mark.parametrize("as_file", [False, True])
def test_a_drawn_maze_is_walked_and_comes_back(as_file: bool, tmp_path: Path) -> None:
    drawing = DRAWING
    if as_file:
        (tmp_path / "maze.txt").write_text(DRAWING)
        drawing = str(tmp_path / "maze.txt")
    generate("mine/drawn-v0", map=drawing, steps=1500)
    dataset = minari.load_dataset("mine/drawn-v0")
    env = dataset.recover_environment()
    assert env.unwrapped.goal.tolist() == [-1, -1]
    assert env.spec.max_episode_steps == 50 * 10  # ten moves from the cell right of the goal to the dead end
    positions = np.concatenate([e.observations[:, :2] for e in dataset.iterate_episodes()])
    seen = {mazes.cell_at(DRAWING, p) for p in positions}
    assert seen <= set(mazes.free_cells(DRAWING)) and len(seen) == 11
    observation, _ = env.reset(seed=0)
    policy = waypoints.waypoint_controller(DRAWING)
    reward = 0.0
    for _ in range(500):
        observation, reward, *_ = env.step(policy(observation))
    assert reward == 1


@pytest.mark.parametrize(
    ("drawing", "message"),
    [
        ("#####\\#GOO#\\###O\\#####", "4 or 5 cells"),
        ("#####\\#GOX#\\#####", "not with X"),
        ("#####\\#GOO \\#####", "4 or 5 cells"),
        ("#####\\OGOO#\\#####", "gap in its outer wall"),
        ("#####\\#OOO#\\#####", "0 goals"),
        ("#####\\#GOG#\\#####", "2 goals"),
        ("#####\\#GO##\\###O#\\#####", "row 3, column 4 .* cannot be reached"),
        ("###\\#G#\\###", "no free cell beside the goal"),
        ("nowhere.txt", "neither a drawing"),
    ],
)
def test_drawings_that_are_no_maze(drawing: str, message: str, datasets: Path) -> None:
    with pytest.raises(UserError, match=message):
        generate("mine/drawn-v0", map=drawing, steps=10)
    assert list(datasets.iterdir()) == []


def test_d4rls_own_drawing_is_its_maze() -> None:
    assert mazes.grid("#####\\#GOO#\\###O#\\#OOO#\\#####") == mazes.MAPS["umaze"]
    assert mazes.step_limit("#####\\#GOO#\\###O#\\#OOO#\\#####") == 300


@pytest.mark.parametrize("setting", [{"map_name": "medium"}, {"dense": True}, {"map": DRAWING}])
def test_an_id_that_names_another_maze_is_refused(setting: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="map_name umaze, dense false"):
        generate("egd/maze2d/umaze-v0", steps=10, **setting)


def _closest(controller: Any, seed: int) -> list[float]:
    """How near a walk from end to end of the U, without noise, comes to the centre of every cell between."""
    env = maze2d.make_env("umaze", max_episode_steps=2000).unwrapped
    env.reset(seed=seed)
    env._sim.point_env.set_state(mazes.centre("umaze", (1, 1)), np.zeros(2))
    policy = controller("umaze", goal=mazes.centre("umaze", (3, 1)), rng=np.random.default_rng(seed))
    observation = np.array([*mazes.centre("umaze", (1, 1)), 0, 0], np.float32)
    seen = [observation]
    while np.linalg.norm(observation[:2] - mazes.centre("umaze", (3, 1))) > 0.1:
        observation = env.step(policy(observation))[0]
        seen.append(observation)
        assert len(seen) < 1000, "it never arrives"
    way = [(1, 2), (1, 3), (2, 3), (3, 3), (3, 2)]
    return [float(np.linalg.norm(np.array(seen)[:, :2] - mazes.centre("umaze", cell), axis=1).min()) for cell in way]


def test_d4rls_controller_goes_from_point_to_point() -> None:
    reach = 0.1 + 0.1 * 2**0.5  # of a point, and of its jitter
    assert all(max(_closest(waypoints.D4RLController, seed)) < reach for seed in range(5))
    assert _closest(waypoints.D4RLController, 0) != _closest(waypoints.D4RLController, 1), "its points are not jittered"
    assert _closest(waypoints.waypoint_controller, 0) == _closest(waypoints.waypoint_controller, 1)


@pytest.mark.parametrize("controller", ["direct", "d4rl"])
def test_both_controllers_make_data(controller: str) -> None:
    generate("walk-v0", steps=3000, controller=controller)
    episodes = _episodes("walk-v0")
    arrived = [len(e.actions) < 300 for e in episodes]
    assert np.mean(arrived[:-1]) > 0.9 and 10 < len(episodes) < 200


@pytest.mark.parametrize("name", ["umaze", "large"])
def test_antmaze_has_the_one_goal_that_rewards_are_relabelled_for(name: str) -> None:
    env = antmaze.make_env(name)
    goals = [env.reset(seed=seed)[0]["desired_goal"] for seed in range(3)]
    env.close()
    np.testing.assert_array_equal(goals, [antmaze.goal_xy(name)] * 3)
