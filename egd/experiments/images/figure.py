"""The figure of images for every target (a row) and estimator (a column)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from egd.drawing import Figure, mpl, plain
from egd.files import replacing
from egd.runs.safe_names import figure_text

REFERENCE = "data, weighted\n(or measured)"


@plain()
def grid_figure(cells: Mapping[str, Mapping[str, Tensor]], path: Path, shown: int, dpi: int = 130) -> None:
    """Draw ``cells[row][column]`` (n, C, S, S) in [-1, 1], the first ``shown`` images of each cell in the same order. Pixels
    that were not measured (nan) are blue.
    """
    columns = list(next(iter(cells.values())))
    across = -(-shown // 2)
    figure = Figure(figsize=(0.28 * across * len(columns) + 0.6, 0.6 * len(cells) + 0.4), layout="constrained")
    axes = figure.subplots(len(cells), len(columns), squeeze=False)
    for axis, column in zip(axes[0], columns, strict=True):
        axis.set_title(figure_text(column.replace("_", " ")) or REFERENCE, fontsize=7)
    for line, (row, by_column) in zip(axes, cells.items(), strict=True):
        for axis, images in zip(line, by_column.values(), strict=True):
            _show(axis, mosaic(images[:shown], across))
        line[0].set_ylabel(figure_text(row.replace(", ", "\n")), fontsize=7)
    with replacing(path) as scratch:
        figure.savefig(scratch, dpi=dpi)


def mosaic(images: Tensor, across: int, gap: int = 1) -> Tensor:
    """Arrange images (n, C, S, S) as one image (C, H, W), ``across`` in a row; gaps and empty places are white."""
    n, c, size = len(images), images.shape[1], images.shape[-1]
    lines = -(-n // across)
    step = size + gap
    whole = torch.ones(c, lines * step - gap, across * step - gap)
    for i, image in enumerate(images.cpu()):
        top, left = (i // across) * step, (i % across) * step
        whole[:, top : top + size, left : left + size] = image
    return whole


def _show(axis: Any, picture: Tensor) -> None:
    pixels = ((picture.permute(1, 2, 0) + 1) / 2).clamp(0, 1).numpy()
    grey = mpl.colormaps["gray"].with_extremes(bad="#4c78a8")
    axis.imshow(np.ma.masked_invalid(pixels[:, :, 0]) if pixels.shape[2] == 1 else pixels, cmap=grey, vmin=0, vmax=1)
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)
