"""Sets of images: one function for each source, found by its name in a recipe."""

from __future__ import annotations

import hashlib
import os
import unicodedata
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from egd.bounds import Pixels
from egd.errors import UserError
from egd.pipelines.inputs import check_images

__all__ = ["digits", "folder"]

SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".bmp", ".gif", ".webp", ".tif", ".tiff")
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF")
"""The formats that are read, whatever the suffix. Pillow decides by the content, and would start Ghostscript on PostScript."""

BITS, PHOTOMETRIC = 258, 262
"""TIFF tags: the bits of a pixel, and what its values mean (0: white is 0)."""


@dataclass(frozen=True)
class ImageSet:
    """A set of ``images`` (N, C, S, S) in [-1, 1], with ``labels`` (N,) and the names of the ``classes`` where the images have
    any.
    """

    images: Tensor
    labels: Tensor | None = None
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.images)

    def rows(self, index: Tensor) -> ImageSet:
        """Select images by index."""
        return ImageSet(self.images[index], None if self.labels is None else self.labels[index], self.classes)

    def to(self, device: torch.device | str) -> ImageSet:
        """Move the images and labels to a device."""
        return ImageSet(self.images.to(device), None if self.labels is None else self.labels.to(device), self.classes)

    def draw(self, n: int, generator: torch.Generator) -> ImageSet:
        """Draw n images with replacement; the generator is on the images' device."""
        return self.rows(torch.randint(len(self), (n,), generator=generator, device=self.images.device))

    def split(self, share: float, generator: torch.Generator) -> tuple[ImageSet, ImageSet]:
        """Split into two disjoint sets, of which the first holds ``share`` of the images."""
        order = torch.randperm(len(self), generator=generator)
        cut = round(share * len(self))
        return self.rows(order[:cut]), self.rows(order[cut:])

    def copies(self, others: ImageSet) -> int:
        """Count the images that also occur among ``others``, bit by bit."""
        known = {image.tobytes() for image in others.images.cpu().numpy()}
        return sum(image.tobytes() in known for image in self.images.cpu().numpy())

    def digest(self) -> str:
        """Return a digest of the images, labels and names of the classes, which does not depend on where the files lie."""
        whole = hashlib.blake2b(repr((tuple(self.images.shape), self.classes)).encode(), digest_size=16)
        for tensor in (self.images, self.labels):
            if tensor is not None:
                whole.update(tensor.cpu().contiguous().numpy().tobytes())
        return whole.hexdigest()

    def check(self) -> None:
        """Raise ValueError unless the images are floating-point and in [-1, 1], and the labels fit the images and the
        classes.
        """
        check_images("images", self.images, self.images.shape[1:])
        if self.images.ndim != 4 or self.images.shape[-1] != self.images.shape[-2]:
            raise ValueError(f"images: expected (N, C, S, S), got {tuple(self.images.shape)}")
        if self.labels is None:
            return
        if self.labels.shape != (len(self),) or self.labels.dtype != torch.long:
            raise ValueError(f"labels: expected {len(self)} of int64, got {tuple(self.labels.shape)} of {self.labels.dtype}")
        if not 0 <= int(self.labels.min()) <= int(self.labels.max()) < len(self.classes):
            raise ValueError(f"labels: expected 0 to {len(self.classes) - 1}, one for each of the {len(self.classes)} classes")


def digits(size: Pixels = 8) -> ImageSet:
    """Load scikit-learn's 1797 handwritten digits of 8 x 8 pixels in ten classes, padded to ``size`` with black."""
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
    """Load every image below ``path``, cut to its central square and scaled to ``size``. The name of the first sub-folder is
    the class.

    Hidden files and folders are left out, and links are followed. Images are turned as EXIF says, transparent pixels become
    white, 16 bits are scaled as 8 bits are, and of an animation the first frame is used. Raises UserError where there are no
    images. Raises it, naming the file, for one that cannot be read, whose range of values is unknown, or that occurs twice.
    """
    root = path.expanduser()
    files = _files(root)
    if not files:
        raise UserError(f"no images below '{root}' ({', '.join(SUFFIXES)}); is the folder right?", key="data.path")
    names = [file.relative_to(root).parts[0] if file.parent != root else "" for file in files]
    classes = tuple(sorted(set(names)))
    _check_names(classes)
    images = torch.stack([_read(file, size, channels) for file in files])
    if len(classes) < 2 or "" in classes:
        return ImageSet(images)
    return ImageSet(images, torch.tensor([classes.index(name) for name in names]), classes)


def _files(root: Path) -> list[Path]:
    """Return the image files below a folder, sorted, without hidden ones. Raises UserError for a broken link, and for a file or
    a folder that is reached twice.
    """
    found: list[Path] = []
    seen: dict[Path, Path] = {}
    for place, folders, names in os.walk(root, onerror=_unreadable, followlinks=True):
        folders[:] = [name for name in folders if not _hidden(name)]
        files = [Path(place) / name for name in names if not _hidden(name) and name.lower().endswith(SUFFIXES)]
        for here in (Path(place), *files):
            real = here.resolve()
            if not real.exists():
                raise UserError(f"{here} is a link that leads nowhere", key="data.path")
            if real in seen:  # a duplicate might be trained on and tested on
                raise UserError(f"{here} and {seen[real]} are one, by a link; remove one of them", key="data.path")
            seen[real] = here
        found += [file for file in files if file.is_file()]
    return sorted(found)


def _unreadable(error: OSError) -> None:
    """Raise UserError for a folder that cannot be listed: its images would be missing silently."""
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise UserError(f"cannot read {error.filename}: {error.strerror}", key="data.path")


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _check_names(classes: tuple[str, ...]) -> None:
    """Raise UserError for two classes whose names differ only in case, in spaces or in the encoding of accents."""
    seen: dict[str, str] = {}
    for name in classes:
        plain = unicodedata.normalize("NFKC", name).casefold().strip()
        if plain in seen:
            raise UserError(f"the folders '{seen[plain]}' and '{name}' would be two classes; is it one?", key="data.path")
        seen[plain] = name


def _read(file: Path, size: int, channels: int) -> Tensor:
    """Read an image to (C, S, S) in [-1, 1]. Raises UserError, naming the file, where it cannot be read, or its range of values
    is unknown.
    """
    from PIL import Image, ImageOps

    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(file, formats=FORMATS) as picture:
                upright = ImageOps.exif_transpose(picture)
                known = upright.mode not in ("I", "F")
                pixels = _square(upright, size, channels, _depth(picture)) if known else None
        except Exception as error:  # Pillow raises many kinds of exceptions for a damaged file
            raise UserError(f"{file} is not an image that can be read: {error}", key="data.path") from error
    if pixels is None:
        kind = "floating numbers" if upright.mode == "F" else "32 bits"
        raise UserError(f"{file} has pixels of {kind}, of no known range; save it with 8 or 16 bits", key="data.path")
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _depth(picture: Any) -> tuple[int, bool]:
    """Return the bits of a grey pixel with more than 8, and whether white is 0; both are among a TIFF file's tags."""
    tags = getattr(picture, "tag_v2", {})
    (bits, *_), white = tags.get(BITS, (16,)), tags.get(PHOTOMETRIC, 1)
    return bits, white == 0


def _square(picture: Any, size: int, channels: int, depth: tuple[int, bool]) -> Any:
    """Return the central square (S, S, C) in [-1, 1] of an image with at most 16 bits; transparent pixels are white."""
    from PIL import Image, ImageOps

    deep = picture.mode.startswith("I;16")
    if deep:
        bits, white_is_zero = depth
        grey = np.asarray(picture).astype(np.float32) / ((2**bits - 1) / 2) - 1
        picture = Image.fromarray(-grey if white_is_zero else grey)
    elif picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    if not deep:
        picture = picture.convert("L" if channels == 1 else "RGB")
    array = np.asarray(ImageOps.fit(picture, (size, size), Image.Resampling.BICUBIC), dtype=np.float32)
    if deep:  # grey; interpolation may leave the range, since floating-point pixels are not clipped
        return array.clip(-1, 1)[:, :, None].repeat(channels, 2)
    return array.reshape(size, size, channels) / 127.5 - 1


def make_context(test: ImageSet, n: int) -> dict[str, Tensor]:
    """Make contexts for n samples: ``label`` is the row number modulo the number of classes, and ``image`` a test image of this
    class.
    """
    rows = torch.arange(n, device=test.images.device)
    if test.labels is None:
        return {"image": test.images[rows % len(test)]}
    labels = rows % len(test.classes)
    pick = [_of_class(test.labels, int(label), i // len(test.classes), i) for i, label in enumerate(labels)]
    return {"label": labels, "image": test.images[pick]}


def _of_class(labels: Tensor, label: int, nth: int, otherwise: int) -> int:
    """Return the index of the nth image of a class, in a cycle; of some other image where the class has none."""
    members = torch.where(labels == label)[0]
    return int(members[nth % len(members)]) if len(members) else otherwise % len(labels)
