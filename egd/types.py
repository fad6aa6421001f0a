"""The contracts every other module speaks, named once (shapes: B batch, ``...`` any event shape)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor, nn


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

    Optional: ``time`` (``HasTime``) and ``input_scale`` (``ScalesInput``).
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


class Objective(Protocol):
    """A loss for the network of an intermediate energy; see ``egd.objectives``.

    Optional: ``targets`` (``HasTargets``), ``dimensionless`` (``Dimensionless``), ``grouped`` (``Grouped``),
    ``loss_networks`` (``HasLossNetworks``), and a network of its own (``BringsNetwork``).
    """

    def loss(
        self, network: TimedEnergy, x0: Tensor, x: Tensor, t: Tensor, c: Context, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Give the loss () and its metrics; x0 and x (B, ...), t (B,). Its random numbers come from ``generator``, which a
        killed run restores."""
        ...


# -- what a component may have beyond its contract: each of these is asked for in one place ---------------------------


@runtime_checkable
class HasTime(Protocol):
    """A schedule that knows the time of a log-SNR: for grids that are uniform in it, log-normal times, and Heun's churn."""

    def time(self, lam: Tensor) -> Tensor:
        """The t at which log(alpha_t / sigma_t) = lam: (B,) -> (B,)"""
        ...


@runtime_checkable
class ScalesInput(Protocol):
    """A schedule whose x_t outgrows unit scale: networks see it scaled (``egd.denoisers.at_unit_scale``)."""

    def input_scale(self, t: Tensor) -> Tensor:
        """The factor of x_t: (B,) -> (B,)"""
        ...


@runtime_checkable
class Preparable(Protocol):
    """A timed energy with work to do once for a batch of contexts, such as drawing support samples
    (``egd.energies.base.prepare``)."""

    def prepare(self, c: Context) -> TimedEnergy:
        """Bind the energy to these contexts."""
        ...


@runtime_checkable
class TakesContext(Protocol):
    """A timed energy that says whether it takes a context; any other is taken to (``egd.energies.base.takes_context``)."""

    conditional: bool


@runtime_checkable
class HasTargets(Protocol):
    """An objective with values whose location and spread E_Theta is expected to have: an ``EnergyNetwork`` takes its output
    scale from them."""

    def targets(self, x0: Tensor, x: Tensor, t: Tensor, c: Context) -> Tensor:
        """(B, ...), (B, ...), (B,), c -> (B,)"""
        ...


@runtime_checkable
class Dimensionless(Protocol):
    """An objective whose loss has no unit; any other loss is taken for a square of energies
    (``egd.objectives.base.is_dimensionless``)."""

    dimensionless: bool


@runtime_checkable
class Grouped(Protocol):
    """An objective that compares ``samples`` of one context side by side (``egd.objectives.base.is_grouped``)."""

    grouped: bool


@runtime_checkable
class BringsNetwork(Protocol):
    """An objective with a network of its own, of several outputs, say: its ``loss`` is given that network
    (``egd.objectives.base.energy_network``).

    Both methods may use the objective's settings, ``beta`` and ``schedule``: its other parts need not be there yet.
    """

    def network(self, event: tuple[int, ...], context: int) -> nn.Module:
        """Make it, fresh, a module of (x_t, t, c), for events of this shape and contexts of so many entries a row."""
        ...

    def timed_energy(self, network: Callable[[Tensor, Tensor, Context], Tensor], x: Tensor, t: Tensor, c: Context) -> Tensor:
        """Read the estimate of E_t from the network: (B, ...), (B,), c -> (B,)"""
        ...


@runtime_checkable
class HasLossNetworks(Protocol):
    """An objective whose loss reads networks that are not the same in all runs (``egd.training.batched``)."""

    def loss_networks(self) -> dict[str, nn.Module]:
        """Name -> network."""
        ...
