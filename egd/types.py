"""Contracts between the modules, each named once (shapes: B batch, ``...`` any event shape)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class ComponentKind:
    """Annotation of a contract that a recipe may fill by a component's name; ``package`` is where the names live."""

    kind: str
    package: str
    makes: tuple[str, ...] = ("__call__",)
    """Methods; a component has at least one of them."""
    arguments: int = 3
    """Number of arguments of ``__call__``."""


Context: TypeAlias = Tensor | Mapping[str, Tensor] | None
"""Condition of a sample: a tensor (B, ...), a dict of such tensors, or None."""

Denoiser: TypeAlias = Callable[[Tensor, Tensor, Context], Tensor]
"""Denoiser: (x_t (B, ...), t (B,), c) -> E[x_0 | x_t, c], shaped like x_t."""

Energy: TypeAlias = Callable[[Tensor, Context], Tensor]
"""Energy, the user's function, low where samples are wanted: (x_0 (B, ...), c) -> (B,)."""

TimedEnergy: TypeAlias = Annotated[
    Callable[[Tensor, Tensor, Context], Tensor], ComponentKind("energy", "egd.energies", ("__call__", "loss"))
]
"""Estimate of E_t(x_t) = -log E[exp(-beta E(x_0)) | x_t] (AEPO Eq. 11): (x_t (B, ...), t (B,), c) -> (B,)."""

GuidanceRule: TypeAlias = Annotated[Callable[[Tensor, Tensor, Tensor], Tensor], ComponentKind("guidance rule", "egd.rules")]
"""Guidance rule: (score (B, ...), grad E_t (B, ...), t (B,)) -> guided score (B, ...)."""

Support: TypeAlias = Callable[[Context, int], Tensor]
"""Support samples, K of q(. | c) for every row of c (B = 1 where c is None): (c, K) -> (B, K, ...)."""


Sample: TypeAlias = Callable[[int, torch.Generator], tuple[Tensor, Context]]
"""Draw of n data points (n, ...) and their contexts: (n, generator) -> (x_0, c)."""


class Schedule(Protocol):
    """Noise schedule: q(x_t | x_0) = N(alpha_t x_0, sigma_t^2 I), t in (0, 1], data at t = 0. AEPO Eq. 5.

    Optional: ``time`` (``HasTime``) and ``input_scale`` (``ScalesInput``).
    """

    def alpha(self, t: Tensor) -> Tensor:
        """Return alpha_t: (B,) -> (B,)."""
        ...

    def sigma(self, t: Tensor) -> Tensor:
        """Return sigma_t: (B,) -> (B,)."""
        ...


class Gaussian(Protocol):
    """Gaussian over x_0 for each row; the class decides how it stores the covariance Sigma."""

    @property
    def mean(self) -> Tensor:
        """Mean (B, ...)."""
        ...

    def quadratic(self, g: Tensor) -> Tensor:
        """Compute g^T Sigma g for each row: (B, ...) -> (B,)."""
        ...

    def root(self) -> Tensor:
        """Return a matrix R with R R^T = Sigma for the flattened event of d entries: (B, d, d)."""
        ...

    def sample(self, noise: Tensor) -> Tensor:
        """Return mean + Sigma^(1/2) noise: noise (K, B, ...) -> (K, B, ...)."""
        ...


Posterior: TypeAlias = Annotated[Callable[[Tensor, Tensor, Context], Gaussian], ComponentKind("posterior", "egd.posteriors")]
"""Gaussian approximation of q(x_0 | x_t, c): (x_t (B, ...), t (B,), c) -> ``Gaussian``."""


class Sampler(Protocol):
    """Sampler from noise to data that needs only a denoiser; a recipe chooses it by name (``egd.samplers``)."""

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
        """Sample: x (B, ...) at times[0], ``times`` (N + 1,) decreasing -> (B, ...) at times[-1].

        Deterministic samplers do not use ``generator``.
        """
        ...


class Objective(Protocol):
    """Loss for the network of an intermediate energy; see ``egd.objectives``.

    Optional: ``targets`` (``HasTargets``), ``dimensionless`` (``Dimensionless``), ``grouped`` (``Grouped``), ``loss_networks``
    (``HasLossNetworks``), and a network of its own (``BringsNetwork``).
    """

    def loss(
        self, network: TimedEnergy, x0: Tensor, x: Tensor, t: Tensor, c: Context, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss () and its metrics: x0 and x (B, ...), t (B,).

        Random numbers come from ``generator``, which a killed run restores.
        """
        ...


# -- optional members of components; each is looked up in one place ---------------------------------------------------


@runtime_checkable
class HasTime(Protocol):
    """Schedule that knows the time of a log-SNR, for grids that are uniform in it, log-normal times, and Heun's churn."""

    def time(self, lam: Tensor) -> Tensor:
        """Return the t at which log(alpha_t / sigma_t) = lam: (B,) -> (B,)."""
        ...


@runtime_checkable
class ScalesInput(Protocol):
    """Schedule whose x_t outgrows unit scale: networks see it scaled (``egd.denoisers.at_unit_scale``)."""

    def input_scale(self, t: Tensor) -> Tensor:
        """Return the factor of x_t: (B,) -> (B,)."""
        ...


@runtime_checkable
class Preparable(Protocol):
    """Timed energy with work to do once for a batch of contexts, such as drawing support samples
    (``egd.energies.base.prepare``).
    """

    def prepare(self, c: Context) -> TimedEnergy:
        """Return the energy bound to these contexts."""
        ...


@runtime_checkable
class TakesContext(Protocol):
    """Timed energy that says whether it takes a context; any other energy is assumed to
    (``egd.energies.base.takes_context``).
    """

    conditional: bool


@runtime_checkable
class HasTargets(Protocol):
    """Objective with targets of the mean and spread that E_Theta will have: an ``EnergyNetwork`` scales its output by them."""

    def targets(self, x0: Tensor, x: Tensor, t: Tensor, c: Context) -> Tensor:
        """Compute the targets: x0 (B, ...), x (B, ...), t (B,), c -> (B,)."""
        ...


@runtime_checkable
class Dimensionless(Protocol):
    """Objective whose loss has no unit; any other loss is taken for a square of energies
    (``egd.objectives.base.is_dimensionless``).
    """

    dimensionless: bool


@runtime_checkable
class Grouped(Protocol):
    """Objective that compares ``samples`` of one context side by side (``egd.objectives.base.is_grouped``)."""

    grouped: bool


@runtime_checkable
class BringsNetwork(Protocol):
    """Objective with a network of its own, which ``loss`` is given; it may have several outputs
    (``egd.objectives.base.energy_network``).

    Both methods may use the objective's settings, ``beta`` and ``schedule``. Its other parts may not exist yet when they are
    called.
    """

    def network(self, event: tuple[int, ...], context: int) -> nn.Module:
        """Make a fresh network of (x_t, t, c), for samples of shape ``event`` and contexts of ``context`` entries a row."""
        ...

    def timed_energy(self, network: Callable[[Tensor, Tensor, Context], Tensor], x: Tensor, t: Tensor, c: Context) -> Tensor:
        """Return the estimate of E_t from the network: (B, ...), (B,), c -> (B,)."""
        ...


@runtime_checkable
class HasLossNetworks(Protocol):
    """Objective whose loss uses networks that differ between runs (``egd.training.batched``)."""

    def loss_networks(self) -> dict[str, nn.Module]:
        """Return the networks by name."""
        ...
