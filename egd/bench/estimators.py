"""The estimators that the benchmark compares: closed forms and objectives, as a recipe would name them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from egd.config.catalogue import ENERGIES, OBJECTIVES
from egd.config.components import Spec, build, validate, wanted_parts
from egd.config.parts import ENERGY_PARTS
from egd.config.trial import Trial
from egd.networks.mlp import EnergyMLP
from egd.objectives.base import energy_network
from egd.schedules import VPLinear
from egd.tensors import isolated_rng
from egd.training.learners import EnergyLearner, Fit, train
from egd.types import Context, Denoiser, Objective, Sample, Schedule, TimedEnergy

EXACT = "exact"
"""Label of the row that the others are compared with."""
TWEEDIE = {"name": "tweedie", "covariance": "full"}
CLOSED_FORMS: dict[str, Any] = {
    "dps": "dps",
    "first_order, posterior1": {"name": "first_order", "posterior": "posterior1"},
    "second_order, residual": {"name": "second_order", "posterior": "residual"},
    "second_order, tweedie": {"name": "second_order", "posterior": TWEEDIE},
    "sigma_points, tweedie": {"name": "sigma_points", "posterior": TWEEDIE},
    "monte_carlo, tweedie": {"name": "monte_carlo", "posterior": TWEEDIE, "samples": 32},
    "support_samples": {"name": "support_samples", "samples": 4096},
    "ess_blend": {"name": "ess_blend", "posterior": TWEEDIE, "samples": 4096},
    "mixture_fit": {"name": "mixture_fit", "samples": 65536},
}
"""Estimators without a network, from the cheapest to the most expensive."""
TRAINED: dict[str, Any] = {
    "AEPO": {"name": "analytic", "posterior": "posterior1"},
    "MSE": "mse",
    "exp-MSE": "exp_mse",
    "CEP": "cep",
    "CEP, batch labels": {"name": "cep", "labels": "batch"},
}
"""Objectives, each of which trains its own network."""


@dataclass(frozen=True)
class Training:
    """The training of a network, the same for all networks of the benchmark."""

    steps: int
    batch: int = 256
    width: int = 128
    layers: int = 3
    lr: float = 1e-3


def all_estimators(mine: str | None = None) -> dict[str, Any]:
    """Return the estimators' specifications by label: closed forms, then objectives, then the user's own."""
    return {**CLOSED_FORMS, **TRAINED, **({} if mine is None else {label_of(mine): mine})}


def label_of(mine: str) -> str:
    """Return the name of a user's class, or its full path where a row of the library has that name."""
    name = mine.rpartition(":")[2]
    taken = {label.casefold() for label in (EXACT, *CLOSED_FORMS, *TRAINED)}
    return mine if name.casefold() in taken else name


def small(specs: Mapping[str, Any], most: int = 256) -> dict[str, Any]:
    """Reduce every estimator's samples to at most ``most``, for a trial."""
    few = {k: {**s, "samples": min(s["samples"], most)} for k, s in specs.items() if isinstance(s, dict) and "samples" in s}
    return {**specs, **few}


def is_objective(spec: Any) -> bool:
    """Return whether a specification names an objective, which trains a network, rather than a closed form."""
    name = Spec.of(spec, "estimator").name
    return name in OBJECTIVES.names() or (":" in name and hasattr(ENERGIES.find(name, "--mine"), "loss"))


def reads_denoiser(spec: Any) -> bool:
    """Return whether the network that an objective trains depends on the denoiser, directly or through a posterior."""
    asked = wanted_parts(OBJECTIVES, Spec.of(spec, "estimator"), ENERGY_PARTS, "estimator")
    return bool(asked & {"denoiser", "posterior", "moments"})


def check(mine: str) -> None:
    """Raise UserError where a user's class is not found, asks for parts that the benchmark lacks, or breaks its contract on a
    few rows.
    """
    validate(ENERGIES, Spec.of(mine, "--mine"), ENERGY_PARTS, "--mine")
    Trial((2,), VPLinear()).energy(Spec.of(mine, "--mine"), "--mine")


def closed_form(spec: Any, parts: Mapping[str, Any]) -> TimedEnergy:
    """Build a closed form from the parts of a problem."""
    energy: TimedEnergy = build(ENERGIES, Spec.of(spec, "estimator"), parts, "estimator")
    return energy


def trained(spec: Any, parts: Mapping[str, Any], sample: Sample, settings: Training, dim: int, seed: int) -> TimedEnergy:
    """Train a network on an objective. The network computes in float32 whatever the dtype of its input."""
    objective: Objective = build(OBJECTIVES, Spec.of(spec, "estimator"), parts, "estimator")
    with isolated_rng(seed):
        network = energy_network(objective, (dim,), 0, partial(EnergyMLP, dim, width=settings.width, layers=settings.layers))
    fit = Fit(network, lr=settings.lr, steps=settings.steps, decay=True)
    schedule: Schedule = parts["schedule"]
    learner = EnergyLearner(fit, schedule, _single(sample), _Single(objective), batch=settings.batch)
    train(learner, settings.steps, torch.Generator().manual_seed(seed))
    return single(network)


def single(network: Callable[[Tensor, Tensor, Context], Tensor]) -> Denoiser:
    """Wrap a float32 network so that it takes and returns the dtype of x."""

    def called(x: Tensor, t: Tensor, c: Context = None) -> Tensor:
        return network(x.float(), t.float(), c).to(x.dtype)

    return called


def _single(sample: Sample) -> Sample:
    return lambda n, generator: (sample(n, generator)[0].float(), None)


@dataclass(frozen=True)
class _Single:
    """An objective that computes in float64 while its network computes in float32."""

    objective: Objective

    def loss(
        self, network: TimedEnergy, x0: Tensor, x: Tensor, t: Tensor, c: Context, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        return self.objective.loss(single(network), x0.double(), x.double(), t.double(), c, generator)

    def __getattr__(self, name: str) -> Any:  # the learner reads further members of an objective
        value = getattr(self.objective, name)
        return (lambda x0, x, t, c: value(x0.double(), x.double(), t.double(), c)) if callable(value) else value
