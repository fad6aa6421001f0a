"""Sets of images, one function a source, each found by its name in a recipe."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from egd.bounds import Pixels
from egd.errors import UserError

__all__ = ["digits", "folder"]

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff")


@dataclass(frozen=True)
class ImageSet:
    """``images`` (N, C, S, S) in [-1, 1]; ``labels`` (N,) and the names of the ``classes``, where the images have any."""

    images: Tensor
    labels: Tensor | None = None
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.images)

    def rows(self, index: Tensor) -> ImageSet:
        """Some of the images."""
        return ImageSet(self.images[index], None if self.labels is None else self.labels[index], self.classes)

    def to(self, device: torch.device | str) -> ImageSet:
        """On a device."""
        return ImageSet(self.images.to(device), None if self.labels is None else self.labels.to(device), self.classes)

    def draw(self, n: int, generator: torch.Generator) -> ImageSet:
        """n images with replacement; the generator is on the images' device."""
        return self.rows(torch.randint(len(self), (n,), generator=generator, device=self.images.device))

    def split(self, share: float, generator: torch.Generator) -> tuple[ImageSet, ImageSet]:
        """Two sets without an image in common, the first with ``share`` of them."""
        order = torch.randperm(len(self), generator=generator)
        cut = round(share * len(self))
        return self.rows(order[:cut]), self.rows(order[cut:])


def digits(size: Pixels = 8) -> ImageSet:
    """1797 handwritten digits of 8 x 8 pixels in ten classes, which scikit-learn carries; padded to ``size`` with black."""
    from sklearn.datasets import load_digits

    if size < 8:
        raise UserError(f"the digits have 8 x 8 pixels; size {size} would cut them", key="data.size")
    found = load_digits()
    images = torch.from_numpy(found.images).float()[:, None] / 8 - 1
    left = (size - 8) // 2
    right = size - 8 - left
    images = torch.nn.functional.pad(images, (left, right, left, right), value=-1.0)
    return ImageSet(images, torch.from_numpy(found.target).long(), tuple(str(name) for name in found.target_names))


def folder(path: Path, size: Pixels = 32, channels: Literal[1, 3] = 3) -> ImageSet:
    """Every image below ``path``, cut to its central square and scaled to ``size``. Where they lie in sub-folders, the first
    one's name is the class. UserError where there are none."""
    root = path.expanduser()
    files = sorted(f for f in root.rglob("*") if f.suffix.lower() in SUFFIXES) if root.is_dir() else []
    if not files:
        raise UserError(f"no images below '{root}' ({', '.join(SUFFIXES)}); is the folder right?", key="data.path")
    images = torch.stack([_read(file, size, channels) for file in files])
    names = [file.relative_to(root).parts[0] if file.parent != root else "" for file in files]
    classes = tuple(sorted(set(names)))
    if len(classes) < 2 or "" in classes:
        return ImageSet(images)
    return ImageSet(images, torch.tensor([classes.index(name) for name in names]), classes)


def _read(file: Path, size: int, channels: int) -> Tensor:
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(file) as picture:
            square = ImageOps.fit(picture.convert("L" if channels == 1 else "RGB"), (size, size), Image.Resampling.BICUBIC)
    except (UnidentifiedImageError, OSError) as error:
        raise UserError(f"{file} is not an image that can be read: {error}", key="data.path") from error
    array = np.asarray(square, dtype=np.float32).reshape(size, size, channels)
    return torch.from_numpy(array / 127.5 - 1).permute(2, 0, 1)
