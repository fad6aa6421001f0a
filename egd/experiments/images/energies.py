"""Energies of pictures, each minus a log-likelihood: at beta = 1 the target is the posterior of Bayes' rule.

They take x_0 (B, C, H, W) in [-1, 1] and a context: ``label`` (B,), the class wanted, and ``image`` like x_0, the picture
that was measured. ``measure(x_0, c, judge)`` says in numbers how well samples do; ``judge`` is a classifier that the guidance
does not know.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

import torch
from torch import Tensor

from egd.bounds import Index, Positive, Seed, Share
from egd.types import Context

__all__ = ["Brightness", "ClassProbability", "Inpainting"]

Logits: TypeAlias = Callable[[Tensor], Tensor]
"""x_0 (B, C, H, W) -> (B, classes)"""


class Measured(Protocol):
    """An energy that knows what to report of samples."""

    def measure(self, x0: Tensor, c: Context, judge: Logits | None) -> dict[str, float]:
        """Name -> number, for the results table."""
        ...


@dataclass(frozen=True)
class ClassProbability:
    """E(x_0) = -log p(y | x_0) of a classifier of clean images; y is ``label``, or the context's where none is set."""

    classifier: Logits
    label: Index | None = None

    def __call__(self, x0: Tensor, c: Context = None) -> Tensor:
        """(B, C, H, W), c -> (B,)"""
        logits = self.classifier(x0)
        _check_logits(logits, len(x0))
        return -logits.log_softmax(1).gather(1, self._label(x0, c)[:, None])[:, 0]

    def _label(self, x0: Tensor, c: Context) -> Tensor:
        if self.label is None:
            return _entry(c, "label")
        return torch.full((len(x0),), self.label, dtype=torch.long, device=x0.device)

    def measure(self, x0: Tensor, c: Context, judge: Logits | None) -> dict[str, float]:
        """``accuracy``: the share of samples that the judge takes for the class wanted."""
        if judge is None:
            return {}
        return {"accuracy": float((judge(x0).argmax(1) == self._label(x0, c)).double().mean())}


@dataclass(frozen=True)
class Brightness:
    """E(x_0) = (m - target)^2 / (2 width^2), m the mean pixel on a scale from 0 to 1: a quadratic in one direction."""

    target: Share = 0.5
    width: Positive = 0.02

    def __call__(self, x0: Tensor, c: Context = None) -> Tensor:
        """(B, C, H, W) -> (B,)"""
        return ((_mean_pixel(x0) - self.target) / self.width).square() / 2

    def measure(self, x0: Tensor, c: Context, judge: Logits | None) -> dict[str, float]:
        """The samples' mean ``brightness`` and the ``std`` of it."""
        m = _mean_pixel(x0)
        return {"brightness": float(m.mean()), "std": float(m.std()) if len(m) > 1 else 0.0}


@dataclass(frozen=True)
class Inpainting:
    """E(x_0) = ||M (x_0 - y)||^2 / (2 noise^2): the pixels of the context's image y that are not hidden, measured with
    noise of that standard deviation (pixels in [-1, 1]). ``random`` hides half of them."""

    hide: Literal["left", "right", "top", "bottom", "centre", "random"] = "right"
    noise: Positive = 0.2
    seed: Seed = 0

    def __call__(self, x0: Tensor, c: Context = None) -> Tensor:
        """(B, C, H, W), c -> (B,)"""
        return (self.known(x0) * (x0 - self._measured(c, x0))).square().flatten(1).sum(1) / (2 * self.noise**2)

    def _measured(self, c: Context, x0: Tensor) -> Tensor:
        """The context's image. ValueError where it is not shaped like x_0 or lies beyond [-1, 1] by more than noise does."""
        image, most = _entry(c, "image"), 1 + 6 * self.noise
        if image.shape[1:] != x0.shape[1:] or len(image) not in (1, len(x0)):
            raise ValueError(f"the context's image has the shape {tuple(image.shape)}, and x_0 {tuple(x0.shape)}")
        if not image.is_floating_point() or not bool((image.abs() <= most).all()):
            kind = image.dtype if not image.is_floating_point() else f"values from {image.min():.4g} to {image.max():.4g}"
            raise ValueError(f"the context's image has {kind}; it is measured on the scale of x_0, from -1 to 1")
        return image

    def known(self, x0: Tensor) -> Tensor:
        """1 where a pixel was measured, 0 where it is hidden: (1, 1, H, W)"""
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
        """Root mean squared errors on the known pixels and, against the whole picture, on the hidden ones."""
        known, square = self.known(x0).expand_as(x0), (x0 - self._measured(c, x0)).square()
        return {"known_rmse": _rms(square, known), "hidden_rmse": _rms(square, 1 - known)}

    def shown(self, c: Context) -> Tensor:
        """What was measured, hidden pixels nan: for figures."""
        image = _entry(c, "image")
        return torch.where(self.known(image) > 0, image, torch.nan)


def _check_logits(logits: Tensor, n: int) -> None:
    """ValueError unless they are (n, classes), of two classes or more, and no probabilities already."""
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
