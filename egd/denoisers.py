"""Denoisers from networks of any prediction type, and the loss that trains them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias, TypeGuard

import torch
from torch import Tensor

from egd.errors import nearest
from egd.tensors import expand
from egd.types import Context, Denoiser, ScalesInput, Schedule

Network: TypeAlias = Callable[[Tensor, Tensor, Context], Tensor]
"""Network: (x_t (B, ...), t (B,), c) -> a prediction or an energy; x_t at unit scale where the schedule has ``input_scale``."""

Prediction = Literal["epsilon", "sample", "v_prediction", "flow"]
"""Prediction type of a network for x_t = alpha x_0 + sigma eps, with r^2 = alpha^2 + sigma^2: the noise eps, the data x_0,
v = (alpha eps - sigma x_0) / r (arXiv:2202.00512), or the velocity u = eps - x_0 (arXiv:2209.03003)."""

COEFFICIENTS: dict[str, Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]] = {
    "epsilon": lambda alpha, sigma: (torch.zeros_like(alpha), torch.ones_like(alpha)),
    "sample": lambda alpha, sigma: (torch.ones_like(alpha), torch.zeros_like(alpha)),
    "v_prediction": lambda alpha, sigma: (-sigma / torch.hypot(alpha, sigma), alpha / torch.hypot(alpha, sigma)),
    "flow": lambda alpha, sigma: (-torch.ones_like(alpha), torch.ones_like(alpha)),
}
"""Coefficients a, b of each prediction a x_0 + b eps, shaped like alpha."""


@dataclass(frozen=True)
class NetworkDenoiser:
    """Denoiser D(x_t, t) = E[x_0 | x_t] of a network's prediction; with r^2 = alpha^2 + sigma^2:

        epsilon       (x_t - sigma eps) / alpha                 AEPO Eq. 18
        sample        the prediction itself
        v_prediction  (alpha x_t / r - sigma v) / r             arXiv:2202.00512
        flow          (x_t - sigma u) / (alpha + sigma)         x_t - t u for alpha = 1 - t, sigma = t

    Where alpha = 0, x_t holds nothing about x_0, and ``epsilon`` gives x_t - sigma eps without the division by alpha. Raises
    ValueError for another prediction type.
    """

    network: Network
    schedule: Schedule
    prediction: Prediction = "epsilon"

    def __post_init__(self) -> None:
        _known(self.prediction)

    def __call__(self, x: Tensor, t: Tensor, c: Context = None) -> Tensor:
        """Return E[x_0 | x_t, c]: (B, ...), (B,), c -> (B, ...)."""
        output = at_unit_scale(self.network, self.schedule)(x, t, c)
        return convert(output, x, t, self.schedule, self.prediction, "sample")


def at_unit_scale(network: Network, schedule: Schedule) -> Network:
    """Wrap a network so that it sees x_t multiplied by the schedule's ``input_scale``; return it as it is where there is
    none.
    """
    if not _scales_input(schedule):
        return network

    def scaled(x: Tensor, t: Tensor, c: Context = None) -> Tensor:
        return network(x * expand(schedule.input_scale(t), x), t, c)

    return scaled


def _scales_input(schedule: object) -> TypeGuard[ScalesInput]:
    return hasattr(schedule, "input_scale")  # called at every step: isinstance takes a hundred times as long


def convert(output: Tensor, x: Tensor, t: Tensor, schedule: Schedule, source: Prediction, to: Prediction) -> Tensor:
    """Convert a prediction of one type into one of another type, exactly; all tensors are shaped like x (B, ...) but t (B,).

    The two equations x_t = alpha x_0 + sigma eps and output = a x_0 + b eps are solved for x_0 and eps. Where they are one
    equation (``epsilon`` at alpha = 0, ``sample`` at sigma = 0) the other unknown is not determined, and comes out finite.
    """
    if _known(source) == _known(to):
        return output
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    a, b = COEFFICIENTS[source](alpha, sigma)
    determinant = alpha * b - sigma * a
    determinant = torch.where(determinant == 0, torch.ones_like(determinant), determinant)
    to_a, to_b = COEFFICIENTS[to](alpha, sigma)
    from_x, from_output = (to_a * b - to_b * a) / determinant, (to_b * alpha - to_a * sigma) / determinant
    return expand(from_x, x) * x + expand(from_output, x) * output


def prediction_target(schedule: Schedule, x0: Tensor, t: Tensor, noise: Tensor, prediction: Prediction = "epsilon") -> Tensor:
    """Return the regression target of a network at x_t = alpha x_0 + sigma noise: x0 and noise (B, ...), t (B,) -> (B, ...)."""
    a, b = COEFFICIENTS[_known(prediction)](schedule.alpha(t), schedule.sigma(t))
    return expand(a, x0) * x0 + expand(b, x0) * noise


def prediction_loss(
    network: Network,
    schedule: Schedule,
    x0: Tensor,
    t: Tensor,
    noise: Tensor,
    c: Context = None,
    prediction: Prediction = "epsilon",
    weight: Tensor | None = None,
) -> Tensor:
    """Compute E w ||network(x_t, t, c) - target||^2, summed over the event and averaged over the batch: ().

    This is DDPM's loss (AEPO Eq. 7) for ``epsilon`` and conditional flow matching (arXiv:2210.02747) for ``flow``. ``weight``
    (B,) weighs each x_0, by exp(-beta E(x_0)) / mean for instance; the network then learns the denoiser of the weighted data.
    """
    output = at_unit_scale(network, schedule)(diffuse(schedule, x0, t, noise), t, c)
    error = (output - prediction_target(schedule, x0, t, noise, prediction)).square().flatten(1).sum(1)
    return error.mean() if weight is None else (weight * error).mean()


def score(denoiser: Denoiser, schedule: Schedule, x: Tensor, t: Tensor, c: Context = None) -> Tensor:
    """Compute grad log q_t(x_t) = (alpha_t D - x_t) / sigma_t^2, shaped like x. AEPO Eq. 14 with Eq. 18."""
    alpha, sigma = expand(schedule.alpha(t), x), expand(schedule.sigma(t), x)
    return (alpha * denoiser(x, t, c) - x) / sigma**2


def diffuse(schedule: Schedule, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """Return x_t = alpha_t x_0 + sigma_t noise, shaped like x_0."""
    return expand(schedule.alpha(t), x0) * x0 + expand(schedule.sigma(t), x0) * noise


def random_times(n: int, low: float, generator: torch.Generator) -> Tensor:
    """Draw t ~ U[low, 1]: (n,), on the generator's device."""
    return low + (1 - low) * torch.rand(n, generator=generator, device=generator.device)


def _known(prediction: Prediction) -> Prediction:
    if prediction not in COEFFICIENTS:
        raise ValueError(f"no prediction is called '{prediction}'; {nearest(prediction, COEFFICIENTS)}")
    return prediction
