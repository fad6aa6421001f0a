"""The contracts every other module speaks, named once (shapes: B batch, ``...`` any event shape)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Protocol, TypeAlias

import torch
from torch import Tensor


@dataclass(frozen=True)
class Part:
    """Marks a contract that a recipe may fill by a component's name, and says in which package the names live."""

    kind: str
    package: str
    makes: tuple[str, ...] = ("__call__",)
    """Methods of which what is made has one at least."""
    arguments: int = 3
    """How many ``__call__`` is given."""


Context: TypeAlias = Tensor | Mapping[str, Tensor] | None
"""What a sample is conditioned on: a tensor (B, ...), a dict of such tensors, or nothing."""

Denoiser: TypeAlias = Callable[[Tensor, Tensor, Context], Tensor]
"""(x_t (B, ...), t (B,), c) -> E[x_0 | x_t, c], shaped like x_t."""

Energy: TypeAlias = Callable[[Tensor, Context], Tensor]
"""(x_0 (B, ...), c) -> (B,): the user's function, low where samples are wanted."""

TimedEnergy: TypeAlias = Annotated[
    Callable[[Tensor, Tensor, Context], Tensor], Part("energy", "egd.energies", ("__call__", "loss"))
]
"""(x_t (B, ...), t (B,), c) -> (B,): an estimate of E_t(x_t) = -log E[exp(-beta E(x_0)) | x_t], AEPO Eq. 11."""

GuidanceRule: TypeAlias = Annotated[Callable[[Tensor, Tensor, Tensor], Tensor], Part("guidance rule", "egd.rules")]
"""(score, grad E_t, t) -> guided score; the first two and the result (B, ...), t (B,)."""

Support: TypeAlias = Callable[[Context, int], Tensor]
"""(c, K) -> (B, K, ...): K samples of q(. | c) for every row of c (B = 1 where c is None)."""


Sample: TypeAlias = Callable[[int, torch.Generator], tuple[Tensor, Context]]
"""(n, generator) -> n data points (n, ...) and their contexts."""


class Schedule(Protocol):
    """q(x_t | x_0) = N(alpha_t x_0, sigma_t^2 I), t in (0, 1], data at t = 0. AEPO Eq. 5.

    Two methods are optional: ``time(lam)``, the inverse of the log-SNR, for time grids that are uniform in it; and
    ``input_scale(t)`` (B,), by which x_t is multiplied before a network sees it, where x_t outgrows unit scale.
    """

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

    def root(self) -> Tensor:
        """A matrix R with R R^T = Sigma for the flattened event of d entries: (B, d, d)."""
        ...

    def sample(self, noise: Tensor) -> Tensor:
        """mean + Sigma^(1/2) noise, for noise (K, B, ...) -> (K, B, ...)"""
        ...


Posterior: TypeAlias = Annotated[Callable[[Tensor, Tensor, Context], Gaussian], Part("posterior", "egd.posteriors")]
"""(x_t (B, ...), t (B,), c) -> the Gaussian that stands for q(x_0 | x_t, c)."""


class Sampler(Protocol):
    """A walk from noise to data that asks only for a denoiser; one is chosen by its name, see ``egd.samplers``."""

    def __call__(
        self,
        denoiser: Denoiser,
        schedule: Schedule,
        x: Tensor,
        times: Tensor,
        c: Context = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """x (B, ...) at times[0], ``times`` (N + 1,) decreasing -> (B, ...) at times[-1]; the deterministic ones
        leave ``generator`` alone."""
        ...
