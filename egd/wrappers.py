"""Denoisers around denoisers: a bound on x_0, known entries of x_0, or two contexts combined. They stack, and samplers need not
know of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from egd.bounds import Number, Positive, PositiveShare
from egd.guidance import GuidedDenoiser
from egd.tensors import expand, inpaint, map_context
from egd.types import Context, Denoiser

__all__ = ["ClassifierFree", "Clip", "DynamicThreshold", "Inpaint"]


def _to_be_bounded(denoiser: Denoiser) -> Denoiser:
    """Return the denoiser; a guided one without its warning of a large x_0, which the wrapper will bound."""
    return denoiser.bounded if isinstance(denoiser, GuidedDenoiser) else denoiser


@dataclass(frozen=True)
class Clip:
    """Denoiser whose x_0 is clamped to [low, high], the data's range.

    A clamped x_0 has no derivative by x_t, so energies that are evaluated through the denoiser (DPS, first order) have no
    gradient where x_0 is out of range. With ``straight_through`` they have one: values are clamped, and derivatives are those
    of the bare denoiser. Raises ValueError unless low < high, where they are numbers.
    """

    denoiser: Denoiser
    low: Number | Tensor
    high: Number | Tensor
    straight_through: bool = False

    def __post_init__(self) -> None:
        numbers = not isinstance(self.low, Tensor) and not isinstance(self.high, Tensor)
        if numbers and not self.low < self.high:
            raise ValueError(f"need low < high, got {self.low} and {self.high}: all of x_0 would be {self.high}")

    def __call__(self, x: Tensor, t: Tensor, c: Context = None) -> Tensor:
        """Return the clamped x_0: (B, ...), (B,), c -> (B, ...)."""
        x0 = _to_be_bounded(self.denoiser)(x, t, c)
        clamped = x0.clamp(min=self.low).clamp(max=self.high)
        return clamped.detach() + (x0 - x0.detach()) if self.straight_through else clamped


@dataclass(frozen=True)
class DynamicThreshold:
    """Denoiser with dynamic thresholding (Imagen, arXiv:2205.11487, section 2.3): clamp(x_0, -s, s) bound / s, where s =
    max(bound, quantile of |x_0| over a sample's entries).

    It suits data in [-bound, bound] under strong guidance: a sample with many entries out of range is shrunk, where ``Clip``
    would saturate it. Events need many entries, as images have. Raises ValueError unless 0 < quantile <= 1 and bound > 0.
    """

    denoiser: Denoiser
    quantile: PositiveShare = 0.995
    bound: Positive = 1.0

    def __post_init__(self) -> None:
        if not (0 < self.quantile <= 1 and self.bound > 0):
            raise ValueError(f"need 0 < quantile <= 1 and bound > 0, got {self.quantile} and {self.bound}")

    def __call__(self, x: Tensor, t: Tensor, c: Context = None) -> Tensor:
        """Return the thresholded x_0: (B, ...), (B,), c -> (B, ...)."""
        x0 = _to_be_bounded(self.denoiser)(x, t, c)
        s = expand(torch.quantile(x0.abs().flatten(1), self.quantile, dim=1).clamp(min=self.bound), x0)
        return torch.maximum(torch.minimum(x0, s), -s) * (self.bound / s)


@dataclass(frozen=True)
class Inpaint:
    """Denoiser whose x_0 has known values in the k entries that ``mask`` (...), an event of booleans, marks.

    ``known`` is (k,) or (B, k), in the event's order, or a function from c to such a tensor; without it the context itself
    holds the values. Along a deterministic sampler the known part of x_t is alpha_t known + sigma_t noise at every t, with the
    noise that the sampler started from ("replacement" conditioning), and at t = 0 the known values themselves. Wrap the
    denoiser that the sampler is given, guidance included: no rule then changes the known entries.

    The samples are exact when the denoiser is that of the unknown entries given the known ones, which it reads from c as
    ``TemporalUNet`` does with ``given``, or when the two parts are independent. A denoiser that was trained without a condition
    sees the known part through its noise only: the unknown entries then depend on it less than they should.
    """

    denoiser: Denoiser
    mask: Tensor
    known: Tensor | Callable[[Context], Tensor] | None = None

    def __call__(self, x: Tensor, t: Tensor, c: Context = None) -> Tensor:
        """Return x_0 with the known entries: (B, ...), (B,), c -> (B, ...).

        Raises ValueError unless there are as many values as known entries.
        """
        known = self.known(c) if callable(self.known) else c if self.known is None else self.known
        if not isinstance(known, Tensor):
            raise ValueError(  # noqa: TRY004  # of the context's content, as below
                "Inpaint: give 'known', values or a function of the context, or a context that holds them"
            )
        values = known.expand(len(x), -1) if known.ndim < 2 else known
        if values.shape[1] != self.count:
            raise ValueError(f"the mask marks {self.count} entries as known, and there are {values.shape[1]} values")
        return inpaint(self.denoiser(x, t, c), self.mask, values)

    @cached_property
    def count(self) -> int:
        """Number of known entries."""
        return int(self.mask.sum())


@dataclass(frozen=True)
class ClassifierFree:
    """Denoiser with classifier-free guidance, D_null + scale (D_c - D_null): arXiv:2207.12598 Eq. 6 with scale = 1 + w.

    The sum is the same in x_0 as in eps or the score, since x_0 is affine in either. At scale 0 it is the unconditional
    denoiser, at 1 the conditional one; beyond 1 its samples follow no known density (not q(x_0) q(c | x_0)^scale). ``null`` is
    the context that stands for no context in the network's training: ``None``, a row (1, ...), or a function from c to it. One
    call takes twice the batch, or two calls are made where the null context is ``None``.
    """

    denoiser: Denoiser
    scale: Number | Tensor
    null: Context | Callable[[Context], Context] = None

    def __call__(self, x: Tensor, t: Tensor, c: Context = None) -> Tensor:
        """Return D_null + scale (D_c - D_null): (B, ...), (B,), c -> (B, ...); ``scale`` is a number or (B,)."""
        null = self.null(c) if callable(self.null) else self.null
        with_c, without = self._both(x, t, c, null)
        scale = expand(self.scale, x) if isinstance(self.scale, Tensor) else self.scale
        return without + scale * (with_c - without)

    def _both(self, x: Tensor, t: Tensor, c: Context, null: Context) -> tuple[Tensor, Tensor]:
        if c is None or null is None:
            return self.denoiser(x, t, c), self.denoiser(x, t, null)
        null = map_context(lambda v: v.expand(len(x), *v.shape[1:]), null)
        both = self.denoiser(torch.cat([x, x]), torch.cat([t, t]), _stacked(c, null))
        return both[: len(x)], both[len(x) :]


def _stacked(a: Context, b: Context) -> Context:
    """Stack two contexts with the same entries: (B, ...), (B, ...) -> (2 B, ...)."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return torch.cat([a, b])
    if isinstance(a, Mapping) and isinstance(b, Mapping) and a.keys() == b.keys():
        return {key: torch.cat([a[key], b[key]]) for key in a}
    raise ValueError("the null context must be of the context's kind: a tensor, or a dict with the same keys")
