"""Discriminator of noised samples, whose logit is the intermediate energy of a target given by samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import softplus

from egd.contracts import timed_values
from egd.denoisers import diffuse
from egd.types import Context, Sample, Schedule, TimedEnergy

__all__ = ["Ratio"]


@dataclass(frozen=True)
class Ratio:
    """Discriminator, with logit -E_Theta, of noised samples of ``wanted`` (density p) from the batch's (density q). EDIS
    (arXiv:2407.12448).

    Where the target is given by samples, the exact intermediate energy is E_t(x_t) = -log p_t(x_t) / q_t(x_t), which needs no
    clean energy and no posterior. The batch holds samples of the model.

    ``kind: logistic`` is mean softplus(E_Theta(wanted)) + mean softplus(-E_Theta(batch)), with optimum E_t itself. ``kind:
    info_nce`` compares each wanted sample with all of the batch, with optimum E_t up to one undetermined constant (the guidance
    is the same). With contexts the densities are those of (x_t, c): -log p(c) / q(c) is added, which does not change the
    guidance either.

    ``clean`` compares at t = 0 only, without noise. The network then is the clean energy -log p / q at t = 0, for closed forms:
    ``egd.energies.clean.at_zero``.

    No energy can demand more than the batch supports: where q holds a share f of p, -E_t is at most -log f.
    """

    schedule: Schedule
    wanted: Sample
    kind: Literal["logistic", "info_nce"] = "logistic"
    clean: bool = False
    dimensionless: ClassVar[bool] = True

    def loss(
        self, network: TimedEnergy, x0: Tensor, x: Tensor, t: Tensor, c: Context, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss () and its metrics: x0 and x (B, ...) samples of the model, t (B,)."""
        with torch.no_grad():
            y0, wanted_c = self.wanted(len(x0), generator)
            noise = torch.randn(y0.shape, generator=generator, dtype=y0.dtype, device=y0.device)
        x, y, t = (x0, y0, torch.zeros_like(t)) if self.clean else (x, diffuse(self.schedule, y0, t, noise), t)
        wanted, model = -timed_values(network, y, t, wanted_c), -timed_values(network, x, t, c)  # logits (B,)
        loss = softplus(-wanted).mean() + softplus(model).mean() if self.kind == "logistic" else info_nce(wanted, model)
        above = (wanted > model).to(loss.dtype).mean()  # of pairs at the same t; 1/2: indistinguishable
        return loss, {"auc": above, "gap": (wanted.mean() - model.mean()).detach()}


def info_nce(positive: Tensor, negatives: Tensor) -> Tensor:
    """Average over positives (P,) -log softmax of the logit among itself and all negatives (N,): () (arXiv:1807.03748)."""
    return (torch.logaddexp(positive, negatives.logsumexp(0)) - positive).mean()
