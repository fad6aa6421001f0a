"""Steps of a learner on batches from elsewhere."""

from __future__ import annotations

import shutil

import pytest
import torch
from torch import Tensor

from egd.computing import Computing
from egd.networks import NoiseMLP
from egd.schedules import VPLinear
from egd.steps import Steps
from egd.training import DenoiserLearner, Fit
from egd.types import Context


def learner() -> DenoiserLearner:
    def sample(n: int, generator: torch.Generator) -> tuple[Tensor, Context]:
        return torch.randn(n, 2, generator=generator), None

    torch.manual_seed(0)
    fit = Fit(NoiseMLP(2, width=8, blocks=1), lr=1e-2, steps=20, decay=True, ema=0.9, clip=0.5)
    return DenoiserLearner(fit, VPLinear(), sample, batch=16)


COMPILED = pytest.param(
    Computing(compile=True), marks=pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler")
)


@pytest.mark.parametrize("computing", [Computing(), COMPILED], ids=["eager", "compiled"])
def test_a_step_on_a_draw_is_the_learners_own(computing: Computing) -> None:
    own, other = learner(), learner()
    other.computing = computing
    take, first, second = Steps(other), torch.Generator().manual_seed(1), torch.Generator().manual_seed(1)
    for _ in range(7):
        torch.testing.assert_close(take(other.draw(second)), own.update(first), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(other.state(), own.state(), rtol=1e-6, atol=1e-8)
