"""The figure of every estimator's samples beside exact ones, a row a beta."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from egd.drawing import Figure, plain
from egd.experiments.toy2d.data import DataSet
from egd.files import replacing
from egd.runs.safe_names import figure_text

HALF_WIDTH = 4.5


@plain()
def samples_figure(data: DataSet, samples: Mapping[str, Mapping[float, Tensor]], path: Path, dpi: int = 90) -> None:
    """Draw ``samples[name]`` in columns and beta in rows. Points are coloured by their energy, dark where it is low; colours
    and axes are the same everywhere.
    """
    betas = list(next(iter(samples.values())))
    figure = Figure(figsize=(1.3 * len(samples) + 0.5, 1.3 * len(betas) + 0.3), layout="constrained")
    axes = figure.subplots(len(betas), len(samples), squeeze=False, sharex=True, sharey=True)
    for column, (name, by_beta) in zip(axes.T, samples.items(), strict=True):
        column[0].set_title(figure_text(name.replace("_", " ")), fontsize=8)
        for axis, points in zip(column, by_beta.values(), strict=True):
            _scatter(axis, data, points)
    for axis, beta in zip(axes[:, 0], betas, strict=True):
        axis.set_ylabel(f"β = {beta:g}", fontsize=8)
    with replacing(path) as scratch:
        figure.savefig(scratch, dpi=dpi)


def _scatter(axis: Any, data: DataSet, points: Tensor) -> None:
    inside = (points.abs() < HALF_WIDTH).all(1)  # False for points that are not finite
    if inside.double().mean() < 0.99:
        outside = 100 * (1 - float(inside.double().mean()))
        axis.text(0.5, 0.02, f"{outside:.0f} % out of sight", fontsize=6, ha="center", transform=axis.transAxes)
    points = points[inside]
    colours = data.energy(points, None).cpu()
    axis.scatter(*points.cpu().T, c=colours, s=1.5, lw=0, cmap="viridis", vmin=0, vmax=1, rasterized=True)
    axis.set(xlim=(-HALF_WIDTH, HALF_WIDTH), ylim=(-HALF_WIDTH, HALF_WIDTH), xticks=[], yticks=[], aspect="equal")
    axis.spines[:].set(color="0.8", linewidth=0.6)
