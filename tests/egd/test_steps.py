"""Steps of a learner on batches from elsewhere."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from egd.networks.mlp import NoiseMLP
from egd.schedules import VPLinear
from egd.training.learners import DenoiserLearner, Fit
from egd.training.precision import Computing
from egd.training.stepping import Steps
from egd.types import Context


def learner() -> DenoiserLearner:
    def sample(n: int, generator: torch.Generator) -> tuple[Tensor, Context]:
        return torch.randn(n, 2, generator=generator), None

    torch.manual_seed(0)
    fit = Fit(NoiseMLP(2, width=8, blocks=1), lr=1e-2, steps=20, decay=True, ema=0.9, clip=0.5)
    return DenoiserLearner(fit, VPLinear(), sample, batch=16)


@pytest.mark.parametrize("compile", [False, True], ids=["eager", "compiled"])
def test_a_step_on_a_draw_is_the_learners_own(compile: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a C++ compiler what was to be compiled runs as it is, with the same numbers."""
    graphs, compiler = [], torch.compile

    def counted(graph: Any, **how: Any) -> Any:
        graphs.append(graph)
        return compiler(graph, **how)

    monkeypatch.setattr(torch, "compile", counted)
    own, other = learner(), learner()
    other.computing = Computing(compile=compile)
    take, first, second = Steps(other), torch.Generator().manual_seed(1), torch.Generator().manual_seed(1)
    for step in range(8):
        torch.testing.assert_close(take(other.draw(second)), own.update(first), rtol=1e-6, atol=1e-8)
        if step == 3:  # as when a run is resumed
            other.load({name: tensor.clone() for name, tensor in own.state().items()})
    torch.testing.assert_close(other.state(), own.state(), rtol=1e-6, atol=1e-8)
    assert len(graphs) == compile  # once for all steps
