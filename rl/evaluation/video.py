"""Films of policies side by side, each in an environment of its own with the same starts."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from egd.errors import UserError
from egd.files import replacing
from egd.runs.safe_names import printable
from rl.agents.base import Agent
from rl.envs.making import Env, env_factory
from rl.evaluation.evaluator import chosen, player
from rl.tasks import Task

Array = np.ndarray[Any, Any]
Picture = np.ndarray[Any, np.dtype[np.uint8]]

FPS = 30  # maximum frames per second: of an environment with more steps per second only some are filmed
HOLD = 1.0  # seconds for which the last frame of an episode is shown
CAPTION = 32  # height of the caption above a frame, in pixels
SUFFIXES = (".mp4", ".gif")


@dataclass
class Panel:
    """Policy, ``act(observation (S,)) -> action (A,)``, in its environment; ``returns`` are those of its episodes so far."""

    name: str
    act: Callable[[Array], Array]
    env: Env
    score: Callable[[float], float]
    returns: list[float] = field(default_factory=list)
    over: bool = False
    seen: Picture | None = None

    def reset(self, seed: int) -> None:
        """Start an episode."""
        self.observation, _ = self.env.reset(seed=seed)
        self.over, self.seen = False, None
        self.returns.append(0.0)

    def step(self) -> None:
        """Take one action, clipped to the action space."""
        space: Any = self.env.action_space
        action = self.act(self.observation).clip(space.low, space.high)
        self.observation, reward, terminated, truncated, _ = self.env.step(action)
        self.over, self.seen = terminated or truncated, None
        self.returns[-1] += float(reward)

    def picture(self) -> Picture:
        """Return the environment's rendering below the policy's name and score so far: (CAPTION + height, width, 3)."""
        if self.seen is None:
            self.seen = self._picture()
        return self.seen

    def _picture(self) -> Picture:
        frame = Image.fromarray(_rendered(self.env))
        page = Image.new("RGB", (frame.width, frame.height + CAPTION))
        page.paste(frame, (0, CAPTION))
        caption = f"{printable(self.name)}   {self.score(self.returns[-1]):.1f}"
        font = ImageFont.load_default(18)
        ImageDraw.Draw(page).text((10, CAPTION // 2), caption, fill="white", font=font, anchor="lm")
        return np.asarray(page)


def film(
    agent: Agent,
    task: Task,
    scales: Mapping[str, Sequence[float]],
    path: Path,
    *,
    episodes: int = 1,
    seed: int = 0,
    advance: Callable[[int], None] | None = None,
) -> dict[str, Array]:
    """Write ``episodes`` of policies at their ``scales``, one after the other, to an .mp4 or .gif; return undiscounted returns
    by policy (episodes,).

    Episode i starts like the i-th environment of an ``Evaluator`` with that seed. Raises UserError as ``check_target`` does,
    and where the environment cannot be rendered.
    """
    check_target(path)
    headless()
    check_renderable(task)
    playing = player(agent, scales, seed, episodes)
    make_env = env_factory(task, task.observation_keys, render_mode="rgb_array")
    with ExitStack() as stack:
        panels = []
        for policy in playing.policies:
            for i, name in enumerate(policy.names):
                env = stack.enter_context(closing(make_env()))
                panels.append(Panel(name, _alone(policy.act, playing.standardise, i, agent.device), env, task.score))
        every, fps = pace(panels[0].env)
        with _written(path, fps) as add:
            for start in range(playing.seed, playing.seed + episodes):
                for picture in played(panels, start, every, round(HOLD * fps)):
                    add(picture)
                    if advance is not None:
                        advance(1)
    return {panel.name: np.asarray(panel.returns) for panel in panels}


def shown(agent: Agent, omegas: Sequence[float] | None = None) -> dict[str, list[float]]:
    """Return the policies filmed by default, with their scales: the behaviour policy, if there is one, and the headline."""
    name = agent.headline.partition("@")[0]
    scales = agent.scales(omegas) if omegas else {"behaviour": [], **chosen(agent, [agent.headline])}
    return {key: scales[key] for key in ("behaviour", name) if key in scales and key in agent.policies()}


def check_target(path: Path) -> None:
    """Raise UserError for a suffix other than .mp4 and .gif, and where the encoder is not installed."""
    if path.suffix not in SUFFIXES:
        raise UserError(f"'{path}' does not end in {' or '.join(SUFFIXES)}, by which the format is chosen", key="--video")
    if path.suffix == ".mp4" and find_spec("imageio_ffmpeg") is None:
        raise UserError("imageio-ffmpeg is not installed; pip install 'egd[video]', or write a .gif", key="--video")


def headless() -> None:
    """Select EGL for MuJoCo's rendering where there is no display, unless ``MUJOCO_GL`` is set."""
    if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        os.environ.setdefault("MUJOCO_GL", "egl")


def check_renderable(task: Task) -> None:
    """Raise UserError where the task's environment cannot render to arrays."""
    with closing(env_factory(task, task.observation_keys)()) as env:
        modes = env.metadata.get("render_modes") or []
    if "rgb_array" not in modes:
        has = f"of render modes it has {', '.join(modes)}, not rgb_array" if modes else "it has no render mode"
        raise UserError(f"the environment of {task.name} cannot be filmed: {has}", key="--video")


def pace(env: Env) -> tuple[int, float]:
    """Return the steps per frame and the frames per second of a film in the environment's own time."""
    fps = float(env.metadata.get("render_fps") or FPS)
    every = max(1, int(np.ceil(fps / FPS)))
    return every, fps / every


def played(panels: Sequence[Panel], seed: int, every: int, hold: int) -> Iterator[Picture]:
    """Yield the frames of one episode of every panel until the last is over; the last frame is repeated ``hold`` times."""
    for panel in panels:
        panel.reset(seed)
    for step in count():
        going = [panel for panel in panels if not panel.over]
        if step % every == 0 or not going:
            yield side_by_side(panels)
        if not going:
            break
        for panel in going:
            panel.step()
    yield from [side_by_side(panels)] * hold


def side_by_side(panels: Sequence[Panel]) -> Picture:
    """Return the panels' frames, joined from left to right."""
    return np.concatenate([panel.picture() for panel in panels], axis=1)


def _rendered(env: Env) -> Picture:
    try:
        picture: Any = env.render()
        return np.asarray(picture, dtype=np.uint8)
    except Exception as error:  # each backend raises an error of its own
        backend = os.environ.get("MUJOCO_GL")
        tried = f"with MUJOCO_GL={backend}" if backend else "with MUJOCO_GL not set"
        raise UserError(
            f"the environment could not be rendered {tried} ({type(error).__name__}: {' '.join(str(error).split())[:160]}); "
            "try another backend: MUJOCO_GL=egl (a GPU, or Mesa's libEGL), osmesa (Mesa's libOSMesa), or glfw (a display)",
            key="--video",
        ) from error


def _alone(act: Any, standardise: Any, scale: int, device: torch.device) -> Callable[[Array], Array]:
    """Return the policy at one guidance scale as a function of a single observation."""
    scale_index = torch.tensor([scale], device=device)

    def acting(observation: Array) -> Array:
        state = torch.as_tensor(observation, dtype=torch.float32, device=device)[None]
        action: Array = act(standardise(state), scale_index)[0].cpu().numpy()
        return action

    return acting


@contextmanager
def _written(path: Path, fps: float) -> Iterator[Callable[[Picture], None]]:
    """Yield a function that adds a frame to the film; an unfinished film leaves no file."""
    gif = path.suffix == ".gif"
    settings: dict[str, Any] = {"loop": 0} if gif else {"macro_block_size": 2}
    writer: Any
    pictures = 0

    def add(picture: Picture) -> None:
        nonlocal pictures
        pictures += 1
        writer.append_data(np.asarray(Image.fromarray(picture).reduce(2)) if gif else picture)

    with replacing(path) as scratch:
        with imageio.get_writer(scratch, fps=fps, **settings) as writer:  # a GIF is made in memory
            yield add
        if not gif:
            _check_whole(scratch, pictures, path)


def _check_whole(scratch: Path, pictures: int, path: Path) -> None:
    """Raise OSError where frames are missing: on a full disk ffmpeg ends without an error that reaches this process."""
    ffmpeg = import_module("imageio_ffmpeg")
    with suppress(RuntimeError, OSError):  # raised for a truncated file
        if ffmpeg.count_frames_and_secs(scratch)[0] >= pictures:
            return
    raise OSError(errno.ENOSPC, "The film is not whole: ffmpeg could not write all of it", str(path))
