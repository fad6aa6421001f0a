"""Many runs as one program: the same numbers as one by one."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
import torch
from torch import Tensor

from egd.energies import DPS
from egd.networks.mlp import EnergyMLP, NoiseMLP
from egd.objectives import CEP, MSE, Analytic
from egd.schedules import VPLinear
from egd.training.batched import BatchedLearner, NotBatchable
from egd.training.learners import DenoiserLearner, EnergyLearner, Fit, StepLearner
from egd.training.precision import Computing
from egd.types import Context

STEPS, RUNS = 7, 3


def sample(n: int, generator: torch.Generator) -> tuple[Tensor, Context]:
    x = torch.randn(n, 2, generator=generator)
    return x, torch.cat([x, x.square()], 1)


def bowl(x: Tensor, c: Context = None) -> Tensor:
    return 0.5 * x.square().sum(1)


def denoiser(run: int, **options: Any) -> StepLearner:
    torch.manual_seed(run)
    fit = Fit(NoiseMLP(2, 4, width=8, blocks=1), lr=1e-2, steps=20, **{"decay": True, "ema": 0.9, **options})
    return DenoiserLearner(fit, VPLinear(), sample, batch=16)


def energy(run: int, objective: Any) -> StepLearner:
    torch.manual_seed(run)
    fit = Fit(EnergyMLP(2, 4, width=8, layers=1), lr=1e-2, steps=20)
    return EnergyLearner(fit, VPLinear(), sample, objective, batch=16)


def generators() -> list[torch.Generator]:
    return [torch.Generator().manual_seed(10 + run) for run in range(RUNS)]


def apart(learners: list[StepLearner], steps: int = STEPS) -> list[list[dict[str, Tensor]]]:
    return [[learner.update(g) for _ in range(steps)] for learner, g in zip(learners, generators(), strict=False)]


MAKERS = {
    "denoiser": denoiser,
    "no average": lambda run: denoiser(run, ema=0.0),
    "mse": lambda run: energy(run, MSE(bowl, beta=2.0)),
    "a target with a gradient": lambda run: energy(run, Analytic(target=DPS(bowl, lambda x, t, c: 0.5 * x, 2.0))),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_together_is_as_apart(make: Any) -> None:
    alone, many = ([make(run) for run in range(RUNS)] for _ in range(2))
    metrics = apart(alone)
    batched = BatchedLearner(many, generators())
    for step in range(STEPS):
        for run, found in enumerate(batched.update()):
            torch.testing.assert_close(found, metrics[run][step], rtol=1e-8, atol=1e-8)
    batched.unstack()
    for one, other in zip(alone, many, strict=True):
        torch.testing.assert_close(other.state(), one.state(), rtol=1e-7, atol=1e-9)
    assert not torch.equal(many[0].state()["module.time.layer.weight"], many[1].state()["module.time.layer.weight"])


@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_step_is_the_eager_step() -> None:
    alone, many = ([MAKERS["a target with a gradient"](run) for run in range(RUNS)] for _ in range(2))
    apart(alone)
    for learner in many:
        learner.computing = Computing(compile=True)
    batched = BatchedLearner(many, generators())
    for _ in range(STEPS):
        batched.update()
    batched.unstack()
    for one, other in zip(alone, many, strict=True):
        torch.testing.assert_close(other.state(), one.state(), rtol=1e-6, atol=1e-8)


def test_products_in_bfloat16_train_to_nearly_the_same_loss() -> None:
    torch.set_default_dtype(torch.float32)
    exact, rough = denoiser(0), denoiser(0)
    rough.computing = Computing("bf16")
    (found,), (rounded,) = apart([exact], 60), apart([rough], 60)
    last = [sum(float(m["loss"]) for m in metrics[-20:]) / 20 for metrics in (found, rounded)]
    assert rough.state()["module.first.weight"].dtype == torch.float32
    assert 0 < abs(last[0] - last[1]) < 0.02 * last[0]


def test_runs_go_on_from_where_they_are_together_or_apart() -> None:
    alone, many = ([denoiser(run) for run in range(RUNS)] for _ in range(2))
    apart(alone, 6)
    states = generators()
    for learner, g in zip(many, states, strict=True):
        for _ in range(2):
            learner.update(g)
    batched = BatchedLearner(many, states)
    for _ in range(3):
        batched.update()
    batched.unstack()
    for learner, g in zip(many, states, strict=True):
        learner.update(g)
    for one, other in zip(alone, many, strict=True):
        torch.testing.assert_close(other.state(), one.state(), rtol=1e-7, atol=1e-9)


def test_generators_are_left_as_they_were_by_the_attempt() -> None:
    states = generators()
    before = [g.get_state() for g in states]
    BatchedLearner([denoiser(run) for run in range(RUNS)], states)
    assert all(torch.equal(g.get_state(), state) for g, state in zip(states, before, strict=True))


def branching(x: Tensor, c: Context = None) -> Tensor:
    return bowl(x) if float(x.sum()) > 0 else bowl(x + 1)


@pytest.mark.parametrize(
    "make",
    [
        lambda run: denoiser(run, clip=1.0),
        lambda run: energy(run, CEP(bowl, support=lambda c, k: torch.randn(len(c), k, 2), schedule=VPLinear())),
        lambda run: energy(run, MSE(branching, beta=1.0)),
    ],
    ids=["clipped", "random numbers in the loss", "a branch"],
)
def test_what_cannot_be_done_together_is_refused(make: Any) -> None:
    with pytest.raises(NotBatchable):
        BatchedLearner([make(run) for run in range(RUNS)], generators())


def test_different_steps_are_refused() -> None:
    learners = [denoiser(run) for run in range(RUNS)]
    learners[0].update(generators()[0])
    with pytest.raises(NotBatchable, match="different steps"):
        BatchedLearner(learners, generators())
