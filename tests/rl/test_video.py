"""Films: what is on them, in which order and how fast, and what is said where there can be none."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import imageio.v2 as imageio
import numpy as np
import pytest
import torch

import rl.envs.maze2d
import rl.evaluation.video
from egd.errors import UserError
from egd.runs.folder import RunFolder
from rl.evaluation.evaluator import chosen
from rl.evaluation.video import CAPTION, film, pace, shown
from rl.tasks import Task

STEPS = 12
ROOM = 20_000


class Lamp(gym.Env[Any, Any]):
    """As bright as its last action; the episode ends with a dark one. The reward is the first observation, its seed."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 60}  # noqa: RUF012
    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.seed, self.steps, self.light = float(seed or 0), 0, 1.0
        return self._observation(), {}

    def step(self, action: Any) -> Any:
        self.steps, self.light = self.steps + 1, float(action[0])
        return self._observation(), self.seed, self.light <= 0, self.steps >= STEPS, {}

    def render(self) -> Any:
        return np.full((64, 96, 3), 255 * max(0.0, self.light), dtype=np.uint8)

    def _observation(self) -> Any:
        return np.array([self.seed, self.steps], dtype=np.float32)


class Unlit(Lamp):
    """Without a renderer."""

    metadata = {"render_modes": []}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()


class Broken(Lamp):
    """Its renderer does not work."""

    def render(self) -> Any:
        raise AttributeError("'NoneType' object has no attribute 'glGetError'")


class Dimmer:
    """An agent with a policy ``behaviour`` that never ends an episode and ``guided@k`` that does after k steps."""

    device = torch.device("cpu")
    headline = "guided@4"
    data = SimpleNamespace(standardise=lambda observation: observation)
    config = SimpleNamespace(evaluation=SimpleNamespace(envs=5))

    def policies(self) -> dict[str, float | None]:
        return {"behaviour": None, "guided": 4.0, "other": 1.0}

    def scales(self, only: Sequence[float] | None = None) -> dict[str, list[float]]:
        return {"behaviour": [], **{name: list(only or [4.0]) for name in ("guided", "other")}}

    def policy(self, name: str, scales: Sequence[float], randomness: Any) -> Any:
        if name == "behaviour":
            return lambda states, scale_index: torch.full((len(states), 1), 3.0)  # beyond the action space
        ends = torch.tensor(scales)
        return lambda states, scale_index: torch.where(states[:, 1:] + 1 < ends[scale_index][:, None], 0.5, -1.0)


@pytest.fixture
def task(monkeypatch: pytest.MonkeyPatch) -> Task:
    for kind in (Lamp, Unlit, Broken):
        name = f"test/{kind.__name__}-v0"
        monkeypatch.setitem(gym.registry, name, gym.envs.registration.EnvSpec(name, entry_point=kind))
    return Task("lamp", "other", ("lamp-v0",), "test/Lamp-v0", max_steps=STEPS, reference=(0.0, 1000.0))


def frames(path: Path) -> list[Any]:
    return [np.asarray(frame, dtype=float) for frame in imageio.get_reader(path)]


def brightness(pictures: Sequence[Any]) -> list[list[float]]:
    """Of each panel of two."""
    width = pictures[0].shape[1] // 2
    below = [picture[-20:, :, 0] for picture in pictures]
    return [[round(float(p[:, half * width + 8 : (half + 1) * width - 8].mean()) / 255, 1) for p in below] for half in (0, 1)]


def test_a_film_shows_the_policies_side_by_side_each_until_its_end(task: Task, tmp_path: Path) -> None:
    pytest.importorskip("imageio_ffmpeg")
    path, seen = tmp_path / "new" / "film.mp4", []
    agent: Any = Dimmer()
    returns = film(agent, task, {"behaviour": [], "guided": [5.0]}, path, seed=2, advance=seen.append)
    pictures = frames(path)
    assert pictures[0].shape == (64 + CAPTION, 2 * 96, 3)
    bright, dimmed = brightness(pictures)
    # 60 steps a second, every second of them on film: steps 0, 2, 4, ..., 12, and the last for a second
    assert len(pictures) == 7 + 30 == len(seen)
    assert bright == [1.0] * 37
    assert dimmed == [1.0, 0.5, 0.5] + [0.0] * 34  # over after step 5, and shown as it then was
    assert {name: r.tolist() for name, r in returns.items()} == {"behaviour": [12 * 12000.0], "guided@5": [5 * 12000.0]}
    caption = pictures[-1][:CAPTION]
    assert caption.max() > 200
    assert (np.abs(caption[:, :96] - caption[:, 96:]) > 100).any()  # another name
    assert [p.name for p in path.parent.iterdir()] == ["film.mp4"]


def test_a_gif_has_half_the_size_and_one_start_after_the_other(task: Task, tmp_path: Path) -> None:
    agent: Any = Dimmer()
    path = tmp_path / "film.gif"
    returns = film(agent, task, {"guided": [3.0, 5.0]}, path, episodes=3)
    pictures = frames(path)
    assert pictures[0].shape == ((64 + CAPTION) // 2, 96, 3)
    levels = np.array([0.0, *brightness(pictures)[1]])
    assert (np.diff(levels) > 0).sum() == 3  # starts
    seeds = np.arange(10_000.0, 10_003.0)  # those of the first environments of an evaluation
    np.testing.assert_array_equal(returns["guided@3"], 3 * seeds)
    np.testing.assert_array_equal(returns["guided@5"], 5 * seeds)


@pytest.mark.parametrize(
    ("fps", "want"), [(20, (1, 20.0)), (30, (1, 30.0)), (50, (2, 25.0)), (125, (5, 25.0)), (None, (1, 30.0))]
)
def test_a_film_is_as_fast_as_the_environment(fps: int | None, want: tuple[int, float]) -> None:
    env: Any = SimpleNamespace(metadata={"render_fps": fps})
    assert pace(env) == want


def test_what_is_filmed_if_nothing_is_said() -> None:
    agent: Any = Dimmer()
    assert shown(agent) == {"behaviour": [], "guided": [4.0]}
    assert shown(agent, [1.0, 2.0]) == {"behaviour": [], "guided": [1.0, 2.0]}
    assert chosen(agent, ["guided", "behaviour", "guided@0.5", "guided@4"]) == {"guided": [4.0, 0.5], "behaviour": []}


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        ("gided@1", ["gided", "guided"]),
        ("behaviour@1", ["behaviour", "no guidance scale"]),
        ("guided@", ["guided@", "1.5"]),
        ("guided@-1", ["guided@-1", "not negative"]),
        ("guided@nan", ["guided@nan"]),
    ],
)
def test_a_policy_that_is_none_is_named(policy: str, words: list[str]) -> None:
    agent: Any = Dimmer()
    with pytest.raises(UserError) as error:
        chosen(agent, [policy])
    assert error.value.key == "--policy" and all(word in str(error.value) for word in words)


def test_an_environment_that_cannot_be_filmed(task: Task, tmp_path: Path) -> None:
    agent: Any = Dimmer()
    with pytest.raises(UserError, match="lamp cannot be filmed: it has no render mode"):
        film(agent, replace(task, env_id="test/Unlit-v0"), shown(agent), tmp_path / "film.gif")
    assert not list(tmp_path.iterdir())


def test_a_backend_that_does_not_work_is_named_with_its_remedy(
    task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    agent: Any = Dimmer()
    with pytest.raises(UserError, match=r"MUJOCO_GL=osmesa .*glGetError.*MUJOCO_GL=egl"):
        film(agent, replace(task, env_id="test/Broken-v0"), shown(agent), tmp_path / "film.gif")
    assert not list(tmp_path.iterdir())


def test_without_a_display_egl_is_taken_unless_something_else_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rl.evaluation.video.sys, "platform", "linux")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setenv("MUJOCO_GL", "")
    monkeypatch.delenv("MUJOCO_GL")  # in this order it is put back in the end
    monkeypatch.setenv("DISPLAY", ":0")
    rl.evaluation.video.headless()
    assert "MUJOCO_GL" not in rl.evaluation.video.os.environ
    monkeypatch.delenv("DISPLAY")
    rl.evaluation.video.headless()
    assert rl.evaluation.video.os.environ["MUJOCO_GL"] == "egl"
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    rl.evaluation.video.headless()
    assert rl.evaluation.video.os.environ["MUJOCO_GL"] == "osmesa"


def test_from_the_command_line(egd: Any, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = trained / "egd-maze2d-umaze-v0/seed-0"
    before = (run / "metrics.jsonl").read_text()

    def fails(words: list[str], *arguments: Any) -> None:
        result = egd("eval", run, *arguments)
        assert result.exit_code == 2, result.output
        assert all(word in result.output for word in words) and "Traceback" not in result.output, result.output

    monkeypatch.setattr(rl.evaluation.video, "find_spec", lambda name: None)
    fails(["--video", "imageio-ffmpeg", "egd[video]"], "--video", tmp_path / "film.mp4")
    fails(["--video", "film.avi", ".mp4 or .gif"], "--video", tmp_path / "film.avi")
    fails(["--policy", "gided", "guided"], "--video", tmp_path / "film.gif", "--policy", "gided@1")
    fails(["--policy", "--omega"], "--policy", "guided@1", "--omega", 1)

    monkeypatch.setattr(
        rl.envs.maze2d.Maze2DEnv, "render", lambda self: np.zeros((48, 48, 3), dtype=np.uint8)
    )  # needs no backend
    result = egd("eval", run, "--video", tmp_path / "film.gif", "--policy", "literal@0.25", "--policy", "behaviour")
    assert result.exit_code == 0, result.output
    assert "literal" in result.output and "0.25" in result.output and "guided" not in result.output
    assert frames(tmp_path / "film.gif")[0].shape == ((48 + CAPTION) // 2, 48, 3)
    assert (run / "metrics.jsonl").read_text() == before  # a film is not an evaluation
    result = egd("eval", run, "--policy", "literal@0.25")
    assert result.exit_code == 0 and "behaviour" not in result.output
    assert "literal@0.25" in (run / "metrics.jsonl").read_text().removeprefix(before)


@contextmanager
def full(room: int) -> Iterator[None]:
    """No file can grow beyond so many bytes."""
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.slow
def test_eval_on_a_full_disk_leaves_nothing_behind(
    egd: Any, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = np.random.default_rng(0)
    monkeypatch.setattr(rl.envs.maze2d.Maze2DEnv, "render", lambda self: noise.integers(0, 255, (96, 96, 3), dtype=np.uint8))
    assert egd("run", recipe, "--out", tmp_path / "out", "--set", "variants={}").exit_code == 0
    run, films = tmp_path / "out/egd-maze2d-umaze-v0/seed-0", tmp_path / "films"
    films.mkdir()
    RunFolder(run).log({"phase": "eval", "note": "x" * ROOM})  # larger than what simulators write for themselves
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for suffix in ("gif", "mp4"):
        if suffix == "mp4" and find_spec("imageio_ffmpeg") is None:
            continue
        with full(ROOM):
            result = egd("eval", run, "--video", films / f"film.{suffix}")
        assert result.exit_code == 2 and f"film.{suffix}" in result.output and "Traceback" not in result.output, result.output
    with full(len((run / "metrics.jsonl").read_bytes()) + 5):
        result = egd("eval", run)
    assert result.exit_code == 0 and "these scores are not noted in" in result.output and "score ± s.e." in result.output
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(("flag", "value"), [("--video", "film.gif"), ("--policy", "guided@1")])
@pytest.mark.parametrize("experiment", ["toy2d", "images"])
def test_other_experiments_have_nothing_to_film(egd: Any, tmp_path: Path, experiment: str, flag: str, value: str) -> None:
    (tmp_path / "config.yaml").write_text(f"experiment: {experiment}\n")
    result = egd("eval", tmp_path, flag, value)
    assert result.exit_code == 2
    assert flag in result.output and experiment in result.output and "leave it out" in result.output


def test_a_real_environment_is_rendered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "egl")
    env = rl.envs.maze2d.make_env("umaze", render_mode="rgb_array")
    env.reset(seed=0)
    try:
        picture = rl.evaluation.video._rendered(env)
    except UserError as error:
        pytest.skip(f"no backend here: {error}")
    assert picture.shape == (480, 480, 3) and picture.std() > 10
    env.close()
