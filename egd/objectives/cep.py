"""Contrastive energy prediction: the network tells which of K noised samples has the low energy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from egd.bounds import BetaOrZero, Candidates
from egd.contracts import energy_values, timed_values
from egd.denoisers import diffuse
from egd.errors import UserError
from egd.tensors import map_context, repeat_context
from egd.types import Context, Energy, Schedule, Support, TimedEnergy

__all__ = ["CEP"]


@dataclass(frozen=True)
class CEP:
    """Contrastive energy prediction, -sum_i softmax_i(-beta E(x_0^i)) log softmax_i(-E_Theta(x_t^i, t, c)). QGPO
    (arXiv:2304.12824).

    The sum runs over groups of K ``samples`` of q(. | c), with one t for each group and independent noise for each sample. The
    loss determines E_Theta up to a function of (t, c), which does not change the guidance. The optimum is exact (AEPO Eq. 11)
    as K -> infinity. At finite K a group's own weights divide its labels, which biases the optimum from the exact E_t towards
    that of ``MSE``, by a share of the order of 1 / K. ``labels: batch`` divides by the weights of the whole batch instead, as
    QGPO's theorem has it: exact at any K, and noisier the more exp(-beta E) differs from group to group.

    Without ``support`` or without a context, the K samples are rows of the batch, cut into groups. With contexts and no support
    the groups mix contexts. This is correct too (E_Theta is then determined up to a function of t), but the network must learn
    the differences between contexts. Otherwise ``support`` draws the samples for the first B // K contexts. Raises ValueError
    for fewer than two samples, and UserError for a batch of one, which leaves nothing to compare.
    """

    energy: Energy
    schedule: Schedule
    support: Support | None = None
    beta: BetaOrZero = 1.0
    samples: Annotated[Candidates, Field(ge=2)] = 16
    labels: Literal["group", "batch"] = "group"
    dimensionless: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.samples < 2:
            raise ValueError(f"CEP compares samples with one another: samples must be 2 or more, not {self.samples}")

    def targets(self, x0: Tensor, x: Tensor, t: Tensor, c: Context) -> Tensor:
        """Compute beta E(x_0), (B,); the loss does not regress on it, but E_Theta's spread is at most that of the targets."""
        return self.beta * energy_values(self.energy, x0, c).detach()

    def loss(
        self, network: TimedEnergy, x0: Tensor, x: Tensor, t: Tensor, c: Context, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss () and its metrics: x0 (B, ...), t (B,). The groups are noised afresh, so x is not used."""
        points, c, k = self._groups(x0, c)
        groups = len(points) // k
        times = t[:groups].repeat_interleave(k)
        noise = torch.randn(points.shape, generator=generator, dtype=points.dtype, device=points.device)
        with torch.no_grad():
            logits = -self.beta * energy_values(self.energy, points, c).reshape(groups, k)
            labels = logits.softmax(1) if self.labels == "group" else groups * logits.flatten().softmax(0).reshape(groups, k)
        guesses = -timed_values(network, diffuse(self.schedule, points, times, noise), times, c).reshape(groups, k)
        loss = -(labels * guesses.log_softmax(1)).sum(1).mean()
        effective = 1 / logits.softmax(1).square().sum(1)
        return loss, {"effective_samples": effective.mean()}

    @torch.no_grad()
    def _groups(self, x0: Tensor, c: Context) -> tuple[Tensor, Context, int]:
        """Return G groups of K points in one batch (G K, ...), their contexts, and K."""
        k = self.samples if self.support is not None and c is not None else min(self.samples, len(x0))
        if k < 2:
            raise UserError("CEP compares samples with one another, and a batch of one has none to compare", key="batch")
        groups = max(1, len(x0) // k)
        if self.support is None or c is None:
            return x0[: groups * k], map_context(lambda v: v[: groups * k], c), k
        chosen = map_context(lambda v: v[:groups], c)
        return self.support(chosen, k).flatten(0, 1), repeat_context(chosen, k), k
