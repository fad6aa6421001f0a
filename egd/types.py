"""The contracts every other module speaks, named once (shapes: B batch, ``...`` any event shape)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol, TypeAlias

from torch import Tensor

Context: TypeAlias = Tensor | Mapping[str, Tensor] | None
"""What a sample is conditioned on: a tensor (B, ...), a dict of such tensors, or nothing."""

Denoiser: TypeAlias = Callable[[Tensor, Tensor, Context], Tensor]
"""(x_t (B, ...), t (B,), c) -> E[x_0 | x_t, c], shaped like x_t."""

Energy: TypeAlias = Callable[[Tensor, Context], Tensor]
"""(x_0 (B, ...), c) -> (B,): the user's function, low where samples are wanted."""

TimedEnergy: TypeAlias = Callable[[Tensor, Tensor, Context], Tensor]
"""(x_t (B, ...), t (B,), c) -> (B,): an estimate of E_t(x_t) = -log E[exp(-beta E(x_0)) | x_t], AEPO Eq. 11."""

GuidanceRule: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(score, grad E_t, t) -> guided score; the first two and the result (B, ...), t (B,)."""

Support: TypeAlias = Callable[[Context, int], Tensor]
"""(c, K) -> (B, K, ...): K samples of q(. | c) for every row of c (B = 1 where c is None)."""


class Schedule(Protocol):
    """q(x_t | x_0) = N(alpha_t x_0, sigma_t^2 I), t in (0, 1], data at t = 0. AEPO Eq. 5."""

    def alpha(self, t: Tensor) -> Tensor:
        """(B,) -> (B,)"""
        ...

    def sigma(self, t: Tensor) -> Tensor:
        """(B,) -> (B,)"""
        ...


class Gaussian(Protocol):
    """A Gaussian over x_0, one per row; how its covariance is stored is its own affair."""

    @property
    def mean(self) -> Tensor:
        """(B, ...)"""
        ...

    def quadratic(self, g: Tensor) -> Tensor:
        """g^T Sigma g per row: (B, ...) -> (B,)"""
        ...

    def sample(self, noise: Tensor) -> Tensor:
        """mean + Sigma^(1/2) noise, for noise (K, B, ...) -> (K, B, ...)"""
        ...


Posterior: TypeAlias = Callable[[Tensor, Tensor, Context], Gaussian]
"""(x_t (B, ...), t (B,), c) -> the Gaussian that stands for q(x_0 | x_t, c)."""
