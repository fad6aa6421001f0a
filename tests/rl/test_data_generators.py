"""Datasets made from others and by strangers: mixed, noisy, a function of one's own; by command line and by recipe."""

from __future__ import annotations

from importlib import import_module
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from egd.errors import UserError

gym = pytest.importorskip("gymnasium")
minari = pytest.importorskip("minari")
pytest.importorskip("gymnasium_robotics")
is_local = import_module("rl.data.stored").is_local
maze2d, mixed, noisy = (getattr(import_module(f"rl.data.generators.{name}"), name) for name in ("maze2d", "mixed", "noisy"))
minari_store = import_module("rl.data.minari_store")

WALK, OTHER = "egd/maze2d/umaze-v1", "egd/maze2d/umaze-v2"


@pytest.fixture(scope="module")
def walks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with two walks."""
    root = tmp_path_factory.mktemp("walks")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(root))
        maze2d(WALK, steps=1500, seed=3)
        maze2d(OTHER, steps=700, seed=4)
    return root


@pytest.fixture
def datasets(walks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store of the test's own, with the walks in it."""
    root = tmp_path / "minari"
    (root / "egd").mkdir(parents=True)
    (root / "egd" / "namespace_metadata.json").write_text("{}")
    (root / "egd" / "maze2d").symlink_to(walks / "egd" / "maze2d")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(root))
    return root


def episodes(dataset_id: str) -> list[Any]:
    return list(minari.load_dataset(dataset_id).iterate_episodes())


def same(one: Any, other: Any) -> bool:
    keys = ("observations", "actions", "rewards", "terminations", "truncations")
    return all(np.array_equal(getattr(one, key), getattr(other, key)) for key in keys)


@pytest.mark.parametrize("share", [1.0, 0.5, 0.3])
def test_a_mixture_has_exactly_the_shares(datasets: Path, share: float) -> None:
    mixed("egd/mine/mix-v0", {WALK: share, OTHER: 1.0}, seed=1)
    first, second, found = episodes(WALK), episodes(OTHER), episodes("egd/mine/mix-v0")
    count = round(share * len(first))
    assert len(found) == count + len(second)
    at = [next(i for i, e in enumerate(first) if same(e, part)) for part in found[:count]]
    assert at == sorted(set(at)), "an episode twice, or out of order"
    assert all(same(a, b) for a, b in zip(found[count:], second, strict=True))
    assert minari.load_dataset("egd/mine/mix-v0").env_spec.id == "egd/Maze2D-v0"


def test_a_mixture_repeats_by_seed(datasets: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        mixed(f"egd/mine/{name}-v0", {WALK: 0.5}, seed=seed)
    a, b, c = (episodes(f"egd/mine/{name}-v0") for name in "abc")
    assert all(map(same, a, b)) and not all(map(same, a, c))


def test_a_mixture_keeps_reset_seeds(datasets: Path) -> None:
    mixed("egd/mine/mix-v0", {OTHER: 1.0, WALK: 1.0})
    seeds = [
        m.get("seed")
        for m in minari.load_dataset("egd/mine/mix-v0").storage.get_episode_metadata(range(len(episodes(OTHER)) + 1))
    ]
    assert seeds[0] == 4 and seeds[-1] == 3 and set(seeds[1:-1]) == {None}


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({}, "needs parts"),
        ({WALK: 1.5}, "share of egd/maze2d/umaze-v1 is 1.5"),
        ({WALK: 0.0}, "share of egd/maze2d/umaze-v1 is 0"),
        ({WALK: 0.001}, "is none of them"),
        ({"mine/none-v0": 1.0}, "mine/none-v0"),
        ({WALK: 1.0, "mine/wide-v0": 1.0}, "observation space"),
    ],
)
def test_parts_that_do_not_make_a_mixture(datasets: Path, parts: dict[str, float], message: str) -> None:
    box = gym.spaces.Box(-np.inf, np.inf, (7,), np.float32), gym.spaces.Box(-1, 1, (2,), np.float32)
    buffer = minari_store.episode_buffer(np.zeros((3, 7)), np.zeros((2, 2)), np.zeros(2, np.float32))
    minari_store.write_dataset("mine/wide-v0", [buffer], *box, None, {})
    with pytest.raises(UserError, match=message):
        mixed("egd/mine/mix-v0", parts, download=False)
    assert not is_local("egd/mine/mix-v0")


def test_a_replay_without_noise_is_the_source(datasets: Path) -> None:
    calls: list[int] = []
    noisy("egd/mine/again-v0", WALK, noise=0, progress=calls.append)
    assert all(same(a, b) for a, b in zip(episodes(WALK), episodes("egd/mine/again-v0"), strict=True))
    assert calls[-1] == 1500


def test_a_replay_with_noise_plays_other_actions_from_the_same_start(datasets: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        noisy(f"egd/mine/{name}-v0", WALK, noise=0.2, seed=seed, episodes=8)
    source, a, b, c = episodes(WALK)[:8], *(episodes(f"egd/mine/{name}-v0") for name in "abc")
    assert all(map(same, a, b)) and not any(map(same, a, c)) and len(a) == 8
    assert np.array_equal(a[0].observations[0], source[0].observations[0])
    assert not np.allclose(a[0].observations[-1], source[0].observations[-1], atol=1e-3)
    for before, after in pairwise(a):  # one walk, as the source is
        assert np.array_equal(before.observations[-1], after.observations[0])
    clean, played = (np.concatenate([e.actions for e in es]) for es in (source, a))
    assert np.abs(played).max() <= 1
    inner = np.abs(clean) < 0.4  # noise is not clipped there
    assert (played - clean)[inner].std() == pytest.approx(0.2, rel=0.15)
    positions = np.concatenate([e.observations[1:, :2] for e in a])
    rewards = import_module("rl.envs.maze2d").reward_at(positions, import_module("rl.envs.mazes").goal_xy("umaze"))
    assert np.array_equal(np.concatenate([e.rewards for e in a]), rewards), "rewards are not those of the new states"


def test_an_episode_ends_where_the_environment_terminates_it(datasets: Path) -> None:
    env = gym.make("Hopper-v5")
    env.reset(seed=11)
    actions = np.ones((300, 3), np.float32)  # falls at once
    seen = [env.reset(seed=11)[0]]
    ended = False
    while not ended:
        observation, _, ended, *_ = env.step(actions[len(seen) - 1])
        seen.append(observation)
    recorded = np.resize(np.array(seen), (301, 11))
    buffer = minari_store.episode_buffer(recorded, actions, np.zeros(300, np.float32), seed=11)
    minari_store.write_dataset("egd/hopper/ones-v0", [buffer], env.observation_space, env.action_space, env.spec, {})
    noisy("egd/hopper/again-v0", "egd/hopper/ones-v0", noise=0)
    (episode,) = episodes("egd/hopper/again-v0")
    assert len(episode.actions) == len(seen) - 1 < 300
    assert episode.terminations[-1] and not episode.truncations.any()
    np.testing.assert_allclose(episode.observations, seen, atol=1e-6)


def test_what_cannot_be_replayed_is_refused(datasets: Path) -> None:
    def store(name: str, spec: Any, seed: int | None) -> None:
        env = gym.make("Pendulum-v1")
        buffer = minari_store.episode_buffer(np.zeros((4, 3)), np.zeros((3, 1)), np.zeros(3, np.float32), seed=seed)
        minari_store.write_dataset(name, [buffer], env.observation_space, env.action_space, spec and env.spec, {})

    store("mine/bare-v0", None, 0)
    store("mine/seedless-v0", True, None)
    for source, message in (
        ("mine/bare-v0", "cannot be recovered"),
        ("mine/seedless-v0", "no reset seed"),
        ("mine/none-v0", "none-v0"),
    ):
        with pytest.raises(UserError, match=message):
            noisy("mine/again-v0", source, download=False)
    env = gym.make("Pendulum-v1")
    buffer = minari_store.episode_buffer(np.zeros((4, 3)), np.zeros((3, 1)), np.zeros(3, np.float32), seed=-1)
    minari_store.write_dataset("mine/odd-v0", [buffer], env.observation_space, env.action_space, env.spec, {})
    with pytest.raises(UserError, match="episode 0 of mine/odd-v0 cannot begin again with seed -1"):
        noisy("mine/again-v0", "mine/odd-v0")
    for wrong in ({"noise": -1.0}, {"episodes": 0}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            noisy("mine/again-v0", WALK, **wrong)
    assert not is_local("mine/again-v0")


def test_a_hopper_episode_repeats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import_module("rl.envs.making").register()
    if not is_local("mujoco/hopper/medium-v0"):
        pytest.skip("mujoco/hopper/medium-v0 not in the local Minari store")
    place = Path(import_module("minari.storage").get_dataset_path("mujoco/hopper/medium-v0"))
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    (tmp_path / "mujoco" / "hopper").mkdir(parents=True)
    (tmp_path / "mujoco" / "hopper" / "medium-v0").symlink_to(place)
    source = minari.load_dataset("mujoco/hopper/medium-v0")
    if next(iter(source.storage.get_episode_metadata([0]))).get("seed") is None:
        pytest.skip("the local mujoco/hopper/medium-v0 has no reset seeds")
    noisy("egd/hopper/again-v0", "mujoco/hopper/medium-v0", noise=0, episodes=2)
    for recorded, again in zip(source.iterate_episodes([0, 1]), episodes("egd/hopper/again-v0"), strict=True):
        np.testing.assert_allclose(again.observations, recorded.observations, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(again.rewards, recorded.rewards, rtol=1e-6, atol=1e-6)
        assert np.array_equal(again.terminations, recorded.terminations)


def test_the_command_line_makes_them_all(egd: Any, datasets: Path, tmp_path: Path) -> None:
    commands = {
        "egd/mine/mix-v0": ["-g", "mixed", "--part", f"{WALK}=0.5", "--part", OTHER],
        "egd/mine/noisy-v0": ["-g", "noisy", "--source", OTHER, "--noise", "0.3", "--set", "episodes=3"],
        "egd/mine/walk-v0": ["--maze", "medium", "--steps", "90", "--dense", "--set", "controller=d4rl"],
    }
    for name, arguments in commands.items():
        result = egd("data", "generate", name, *arguments)
        assert result.exit_code == 0, result.output
    assert len(episodes("egd/mine/mix-v0")) == round(0.5 * len(episodes(WALK))) + len(episodes(OTHER))
    assert len(episodes("egd/mine/noisy-v0")) == 3
    kwargs = minari.load_dataset("egd/mine/walk-v0").env_spec.kwargs
    assert (kwargs["map_name"], kwargs["dense"]) == ("medium", True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-g", "mixd"], "did you mean 'mixed'"),
        (["-g", "mixed", "--noise", "1"], "no setting 'noise'"),
        (["-g", "noisy"], "needs 'source'"),
        (["-g", "mixed", "--part", f"{WALK}=much"], "DATASET=SHARE"),
        (["-g", "mixed", "--part", WALK, "--part", WALK], "twice"),
        (["--maze", "umaze", "--map", "mine.txt"], "not both"),
        (["--set", "controller=fast"], "controller"),
        (["--set", "controller"], "a.b=c"),
    ],
)
def test_the_command_line_refuses(egd: Any, datasets: Path, arguments: list[str], message: str) -> None:
    result = egd("data", "generate", "egd/mine/new-v0", *arguments)
    assert result.exit_code == 2 and message in result.output, result.output
    assert not is_local("egd/mine/new-v0")


STRANGER = '''
import numpy as np
import gymnasium as gym
from rl.data.minari_store import episode_buffer, write_dataset

def still(dataset_id, episodes: int = 3, progress=None):
    """Pendulums that hang."""
    env = gym.make("Pendulum-v1")
    box = gym.spaces.Box(-1, 1, (1,), np.float32)
    buffers = [episode_buffer(np.zeros((5, 3), np.float32), np.zeros((4, 1), np.float32), np.ones(4, np.float32))] * episodes
    write_dataset(dataset_id, buffers, env.observation_space, box, env.spec, {})
    progress(4 * episodes)
'''


def test_a_strangers_generator_works_by_its_path(egd: Any, datasets: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(STRANGER)
    result = egd("data", "generate", "mine/still-v0", "-g", f"{tmp_path}/mine.py:still", "--set", "episodes=2")
    assert result.exit_code == 0, result.output
    assert len(episodes("mine/still-v0")) == 2


@pytest.mark.parametrize(
    ("task", "generator", "count"),
    [
        ("egd/maze2d/umaze-mix-v0", {"name": "mixed", "parts": {WALK: 0.5, OTHER: 0.5}}, None),
        ("egd/maze2d/umaze-noisy-v0", {"name": "noisy", "source": OTHER, "episodes": 2}, 2),
        ("mine/still-v0", {"name": "FILE:still", "episodes": 1}, 1),
        ("mine/drawn-v0", {"name": "maze2d", "map": "####\n#GO#\n####", "steps": 80}, None),
    ],
)
def test_recipes_know_the_same_names(
    datasets: Path,
    tmp_path: Path,
    recipe: Path,
    monkeypatch: pytest.MonkeyPatch,
    task: str,
    generator: dict[str, Any],
    count: int | None,
) -> None:
    from egd.config.base import read_yaml
    from rl.runs.loading import load_data
    from rl.runs.recipe import typed

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(datasets))  # the fixture ``recipe`` has its own
    (tmp_path / "mine.py").write_text(STRANGER)
    generator = {**generator, "name": generator["name"].replace("FILE", f"{tmp_path}/mine.py")}
    tree = {k: v for k, v in read_yaml(recipe).items() if k not in ("tasks", "budgets")}
    data, found = load_data(typed({**tree, "task": task, "data": {"generator": generator}}, "test"), "cpu")
    assert found.name == task and data.episodes == (count or len(episodes(task)))


def test_a_dataset_is_made_by_one_process_and_only_where_there_is_room(
    egd: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "store"))
    command = ("data", "generate", "egd/maze2d/umaze-v0", "--steps", "300")
    with minari_store.making("egd/maze2d/umaze-v0"):
        left = tmp_path / "store" / "egd" / "maze2d" / ".umaze-v0.partial-1"  # of a process that was killed
        (left / "data").mkdir(parents=True)
        refused = egd(*command)
    assert refused.exit_code == 2 and "'egd/maze2d/umaze-v0' is in use by process" in refused.output, refused.output
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=2**20))
        full = egd(*command)
    assert full.exit_code == 2 and "No space left" in full.output and "MINARI_DATASETS_PATH" in full.output, full.output
    assert not [path for path in (tmp_path / "store").rglob("*") if path.is_file()]
    assert not left.exists()
    assert egd(*command).exit_code == 0


def test_a_limit_that_the_disk_does_not_tell_of_is_met_before_anything_is_written(datasets: Path) -> None:
    """HDF5 ends the process where it cannot write. A quota has no free space to ask for either: the room is tried."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, hard))
    try:
        with pytest.raises(UserError, match=r"File too large.*MINARI_DATASETS_PATH"):
            mixed("egd/mine/big-v0", {WALK: 1.0}, seed=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not [*datasets.rglob("*big-v0*")]
    mixed("egd/mine/big-v0", {WALK: 1.0}, seed=1)
