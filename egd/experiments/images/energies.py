"""Energies of images, each a negative log-likelihood: at beta = 1 the target is the posterior of Bayes' rule.

They take x_0 (B, C, H, W) in [-1, 1] and a context: ``label`` (B,) is the wanted class, ``image`` the measured image, shaped
like x_0. ``measure(x_0, c, judge)`` returns numbers that rate samples; ``judge`` is a classifier that the guidance does not
use.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor

from egd.bounds import Index, Positive, Seed, Share
from egd.types import Context

__all__ = ["Brightness", "ClassProbability", "Inpainting"]

Logits: TypeAlias = Callable[[Tensor], Tensor]
"""x_0 (B, C, H, W) -> (B, classes)."""


@runtime_checkable
class MeasuresSamples(Protocol):
    """An energy that can rate samples."""

    def measure(self, x0: Tensor, c: Context, judge: Logits | None) -> dict[str, float]:
        """Return the numbers for the results table by name."""
        ...


@runtime_checkable
class ShowsImages(Protocol):
    """An energy with images of its own to show in the figure, such as the measured pixels."""

    def shown(self, c: Context) -> Tensor:
        """Return the images (B, C, H, W) of a context."""
        ...


@dataclass(frozen=True)
class ClassProbability:
    """E(x_0) = -log p(y | x_0) of a classifier of clean images; y is ``label``, or the context's label where none is set."""

    classifier: Logits
    label: Index | None = None

    def __call__(self, x0: Tensor, c: Context = None) -> Tensor:
        """Compute the energy: (B, C, H, W), c -> (B,)."""
        logits = self.classifier(x0)
        _check_logits(logits, len(x0))
        return -logits.log_softmax(1).gather(1, self._label(x0, c)[:, None])[:, 0]

    def _label(self, x0: Tensor, c: Context) -> Tensor:
        if self.label is None:
            return _entry(c, "label")
        return torch.full((len(x0),), self.label, dtype=torch.long, device=x0.device)

    def measure(self, x0: Tensor, c: Context, judge: Logits | None) -> dict[str, float]:
        """Return ``accuracy``, the share of samples that the judge assigns to the wanted class."""
        if judge is None:
            return {}
        return {"accuracy": float((judge(x0).argmax(1) == self._label(x0, c)).double().mean())}


@dataclass(frozen=True)
class Brightness:
    """E(x_0) = (m - target)^2 / (2 width^2) with the mean pixel m on a scale from 0 to 1: a quadratic in one direction."""

    target: Share = 0.5
    width: Positive = 0.02

    def __call__(self, x0: Tensor, c: Context = None) -> Tensor:
        """Compute the energy: (B, C, H, W) -> (B,)."""
        return ((_mean_pixel(x0) - self.target) / self.width).square() / 2

    def measure(self, x0: Tensor, c: Context, judge: Logits | None) -> dict[str, float]:
        """Return the mean ``brightness`` of the samples and its standard deviation ``std``."""
        m = _mean_pixel(x0)
        return {"brightness": float(m.mean()), "std": float(m.std()) if len(m) > 1 else 0.0}


@dataclass(frozen=True)
class Inpainting:
    """E(x_0) = ||M (x_0 - y)||^2 / (2 noise^2): M selects the pixels of the context's image y that are not hidden. These are
    measured with noise of this standard deviation, pixels in [-1, 1]. ``random`` hides half of the pixels.
    """

    hide: Literal["left", "right", "top", "bottom", "centre", "random"] = "right"
    noise: Positive = 0.2
    seed: Seed = 0

    def __call__(self, x0: Tensor, c: Context = None) -> Tensor:
        """Compute the energy: (B, C, H, W), c -> (B,)."""
        return (self.known(x0) * (x0 - self._measured(c, x0))).square().flatten(1).sum(1) / (2 * self.noise**2)

    def _measured(self, c: Context, x0: Tensor) -> Tensor:
        """Return the context's image. Raises ValueError where its shape is not that of x_0, or its values exceed [-1, 1] by
        more than noise explains.
        """
        image, most = _entry(c, "image"), 1 + 6 * self.noise
        if image.shape[1:] != x0.shape[1:] or len(image) not in (1, len(x0)):
            raise ValueError(f"the context's image has the shape {tuple(image.shape)}, and x_0 {tuple(x0.shape)}")
        if not image.is_floating_point() or not bool((image.abs() <= most).all()):
            kind = image.dtype if not image.is_floating_point() else f"values from {image.min():.4g} to {image.max():.4g}"
            raise ValueError(f"the context's image has {kind}; it is measured on the scale of x_0, from -1 to 1")
        return image

    def known(self, x0: Tensor) -> Tensor:
        """Return a mask (1, 1, H, W), 1 where a pixel is measured and 0 where it is hidden."""
        height, width = x0.shape[-2:]
        mask = torch.ones(height, width)
        if self.hide == "random":
            mask = (torch.rand(height, width, generator=torch.Generator().manual_seed(self.seed)) < 0.5).float()
        elif self.hide == "centre":
            mask[height // 4 : height - height // 4, width // 4 : width - width // 4] = 0
        elif self.hide in ("left", "right"):
            mask[:, slice(width // 2) if self.hide == "left" else slice(width // 2, None)] = 0
        else:
            mask[slice(height // 2) if self.hide == "top" else slice(height // 2, None)] = 0
        if mask.min() == mask.max():
            kept = "all" if mask.max() else "none"
            raise ValueError(f"hide '{self.hide}' leaves {kept} of the {height} x {width} pixels; take larger images")
        return mask[None, None].to(x0)

    def measure(self, x0: Tensor, c: Context, judge: Logits | None) -> dict[str, float]:
        """Return root mean squared errors against the context's image, of the known and of the hidden pixels."""
        known, square = self.known(x0).expand_as(x0), (x0 - self._measured(c, x0)).square()
        return {"known_rmse": _rms(square, known), "hidden_rmse": _rms(square, 1 - known)}

    def shown(self, c: Context) -> Tensor:
        """Return the measured image for figures, with hidden pixels nan."""
        image = _entry(c, "image")
        return torch.where(self.known(image) > 0, image, torch.nan)


def _check_logits(logits: Tensor, n: int) -> None:
    """Raise ValueError unless the logits are (n, classes), of two classes or more, and are not probabilities."""
    if logits.ndim != 2 or len(logits) != n or logits.shape[1] < 2:
        raise ValueError(f"a classifier gives logits ({n}, classes), of two classes or more; got {tuple(logits.shape)}")
    with torch.no_grad():
        if bool((logits > 0).all()) and bool(((logits.sum(1) - 1).abs() < 1e-4).all()):
            raise ValueError("the classifier gives probabilities; energies need logits, such as their logarithms")


def _rms(square: Tensor, mask: Tensor) -> float:
    return float(((mask * square).sum() / mask.sum()).sqrt().item())


def _mean_pixel(x0: Tensor) -> Tensor:
    return (x0.flatten(1).mean(1) + 1) / 2


def _entry(c: Context, name: str) -> Tensor:
    if not isinstance(c, Mapping) or name not in c:
        raise ValueError(f"this energy needs a context with '{name}'")
    return c[name]
