"""Figures of a run: posterior variances over t, scores over omega, and paths through a maze."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import rl.envs.maze2d
from egd.drawing import Figure, plain
from egd.files import replacing
from egd.posteriors.moments import KINDS
from egd.runs.safe_names import figure_text
from rl.critics.base import ValueFunction
from rl.data.transitions import OfflineData
from rl.evaluation.results import by_scale, statistics
from rl.evaluation.rollouts import Rollouts
from rl.parts.calibration import AdvantageCalibration
from rl.parts.guidance import Guidance
from rl.tasks import Task

Array = np.ndarray[Any, Any]
LABELS = {"posterior1": "Posterior 1 (Eq. 22)", "posterior2": "Posterior 2 (Eq. 24)", "residual": "residual (Eq. 42)"}
STYLE = {"axes.spines.top": False, "axes.spines.right": False, "font.size": 9}
COLOURS = {"posterior1": "#d1495b", "posterior2": "#2e86ab", "residual": "#3a7d44"}


def _figure(columns: int, width: float = 4.2, height: float = 3.4, *, share: bool = False) -> tuple[Figure, list[Any]]:
    figure = Figure(figsize=(width * columns, height), layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False, sharey=share)[0]
    return figure, list(axes)


def draw(calibration: AdvantageCalibration, folder: Path, title: str, task: Task, rollouts: Rollouts) -> None:
    """Save figures of the posterior variances and, for maze2d, of paths through the maze."""
    posterior_figure(calibration, folder / "posterior_variance.png", title)
    if task.family == "maze2d":
        _draw_paths(calibration, folder, task, rollouts, {name: name for name in rollouts.returns})


def draw_guided(guidance: Guidance, folder: Path, title: str, task: Task, rollouts: Rollouts) -> None:
    """Save figures of the posterior variances, of scores over omega and, for maze2d, of paths through the maze."""
    calibration, guidances = guidance.calibration, guidance.config.guidances
    posterior_figure(calibration, folder / "posterior_variance.png", title)
    policies = {name: statistics(task, returns) for name, returns in rollouts.returns.items()}
    scores = {name: by_scale(policies, name) for name in guidances}
    omega_figure(scores, policies["behaviour"], folder / "omega.png", title)
    if task.family == "maze2d":
        titles = {guidance.own(name): f"{name} ({own.energy.name})" for name, own in guidances.items()}
        named = {"behaviour": "behaviour", **{key: name for key, name in titles.items() if key != "behaviour"}}
        _draw_paths(calibration, folder, task, rollouts, named)


def _draw_paths(
    calibration: AdvantageCalibration, folder: Path, task: Task, rollouts: Rollouts, named: Mapping[str, str]
) -> None:
    """Save the figure of the paths of those policies in ``named`` that recorded any, under the given names."""
    chosen = {key: name for key, name in named.items() if key in rollouts.paths}
    paths = {key: [np.array(walk) for walk in rollouts.paths[key] if walk] for key in chosen}
    scores = {key: statistics(task, rollouts.returns[key])["mean"] for key in chosen}
    titles = {key: f"{name}: score {scores[key]:.1f}" for key, name in chosen.items()}
    value = partial(_value_map, calibration.behaviour.data, calibration.value)
    maze_figure(value, task.env_kwargs["map_name"], paths, titles, folder / "maze.png")


@plain(STYLE)
def posterior_figure(calibration: AdvantageCalibration, path: Path, title: str) -> None:
    """Save the raw variances over t, with and without clipping x_0, and shade the valid range.

    The axis is linear near the valid range and logarithmic beyond.
    """
    figure, axes = _figure(2, share=True)
    for axis, (clip, moments) in zip(axes, calibration.moments.items(), strict=True):
        top = float(moments.data_var)
        axis.axhspan(0, top, color="0.9", label=f"valid: 0 to Var(x₀) = {top:.3f}")
        for kind in KINDS:
            share = 100 * moments.clamp_share(kind)
            label = f"{LABELS[kind]}, clamped at {share:.0f} % of t"
            axis.plot(moments.t.cpu(), moments.raw[kind].cpu(), color=COLOURS[kind], label=label)
        axis.set_yscale("symlog", linthresh=10 ** np.ceil(np.log10(max(top, 1e-6))))
        axis.set_title("x₀ clipped to the data's range" if clip else "denoiser as trained")
        axis.set_xlabel("t")
        axis.legend(fontsize=7, frameon=False)
    axes[0].set_ylabel("estimated variance of x₀ given x_t")
    figure.suptitle(figure_text(title))
    with replacing(path) as scratch:
        figure.savefig(scratch, dpi=150)


@plain(STYLE)
def omega_figure(
    scores: Mapping[str, Mapping[str, Mapping[str, Any]]], behaviour: Mapping[str, Any], path: Path, title: str
) -> None:
    """Save scores over the guidance scale, one line per policy, with error bars of one standard error."""
    figure, axes = _figure(1, 5.2, 3.6)
    mean, error = behaviour["mean"], behaviour["std"] / behaviour["episodes"] ** 0.5
    axes[0].axhspan(mean - error, mean + error, color="0.88")
    axes[0].axhline(mean, color="0.5", label="behaviour (omega = 0, temperature 1)")
    for name, by_omega in scores.items():
        omegas = sorted(by_omega, key=float)
        means = [by_omega[o]["mean"] for o in omegas]
        errors = [by_omega[o]["std"] / by_omega[o]["episodes"] ** 0.5 for o in omegas]
        axes[0].errorbar([float(o) for o in omegas], means, errors, marker="o", ms=4, capsize=2, label=figure_text(name))
    axes[0].set(xlabel="guidance scale omega", ylabel="score", title=figure_text(title))
    axes[0].legend(frameon=False, fontsize=7)
    with replacing(path) as scratch:
        figure.savefig(scratch, dpi=150)


@torch.no_grad()
@plain(STYLE)
def maze_figure(
    value_map: Callable[..., Array], map_name: str, paths: Mapping[str, Sequence[Array]], titles: Mapping[str, str], path: Path
) -> None:
    """Save the maze with paths of each policy over the learned value V(s) at rest; a star marks the goal."""
    figure, axes = _figure(len(paths), 3.4, 3.6)
    cells = rl.envs.maze2d.MAPS[map_name]
    half_x, half_y = len(cells[0]) / 2, len(cells) / 2
    value = value_map(half_x, half_y, cells)
    goal = rl.envs.maze2d.goal_xy(map_name)
    image = None
    for axis, (name, walks) in zip(axes, paths.items(), strict=True):
        extent = (-half_x, half_x, -half_y, half_y)
        image = axis.imshow(value, extent=extent, origin="lower", cmap="viridis", alpha=0.85)
        axis.set_facecolor("0.25")
        for walk in walks:
            axis.plot(walk[:, 0], walk[:, 1], color="white", lw=0.8, alpha=0.75)
            axis.plot(*walk[0, :2], "o", color="white", ms=3)
        axis.plot(*goal, "*", color="#ffd166", ms=14, mec="black")
        axis.set(
            title=figure_text(titles[name]), xticks=[], yticks=[], xlim=(1 - half_x, half_x - 1), ylim=(1 - half_y, half_y - 1)
        )
        axis.spines[["left", "bottom"]].set_visible(False)
    if image is not None:
        figure.colorbar(image, ax=axes, label="learned value V(s), at rest", shrink=0.8)
    with replacing(path) as scratch:
        figure.savefig(scratch, dpi=150)


def _value_map(
    data: OfflineData, critic: ValueFunction, half_x: float, half_y: float, cells: Sequence[Sequence[Any]], resolution: int = 20
) -> Array:
    """Compute V on a raster of positions with zero velocity, nan in walls; row 0 is the lowest y."""
    xs = (np.arange(2 * half_x * resolution) + 0.5) / resolution - half_x
    ys = (np.arange(2 * half_y * resolution) + 0.5) / resolution - half_y
    grid_x, grid_y = np.meshgrid(xs, ys)
    positions = np.stack([grid_x, grid_y, 0 * grid_x, 0 * grid_x], -1).reshape(-1, 4).astype(np.float32)
    states = data.standardise(torch.from_numpy(positions).to(data.action_low.device))
    value = critic.v(states).cpu().numpy().reshape(grid_x.shape)
    rows = np.floor(half_y - grid_y).astype(int).clip(0, len(cells) - 1)
    columns = np.floor(grid_x + half_x).astype(int).clip(0, len(cells[0]) - 1)
    walls = np.array([[cell == 1 for cell in row] for row in cells])
    return np.where(walls[rows, columns], np.nan, value)
