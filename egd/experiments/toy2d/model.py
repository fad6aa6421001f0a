"""The trained parts of a 2-D run, and the estimators of E_t that use them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from egd.config import catalogue
from egd.config.catalogue import ENERGIES, OBJECTIVES, POSTERIORS, RULES, make_schedule
from egd.config.components import Registry, Spec, build, validate
from egd.config.parts import ENERGY_PARTS, POSTERIOR_PARTS, RULE_PARTS
from egd.config.sections import check_titles
from egd.config.trial import Trial
from egd.denoisers import NetworkDenoiser, at_unit_scale
from egd.energies.base import prepare
from egd.errors import UserError
from egd.experiments.toy2d.config import Toy2dConfig
from egd.experiments.toy2d.data import DataSet
from egd.guidance import guide
from egd.networks.mlp import EnergyMLP, NoiseMLP
from egd.objectives.base import energy_network
from egd.posteriors.moments import Moments
from egd.runs.labels import label
from egd.runs.phase import Phase, fresh, seed_of
from egd.samplers import initial_noise
from egd.schedules import time_grid
from egd.selection import Weights, energy_weights
from egd.training.calibration import Calibration
from egd.training.learners import DenoiserLearner, EnergyLearner, Fit, Metrics
from egd.types import Denoiser, Schedule, TimedEnergy
from egd.wrappers import Clip

WEIGHTS = Registry("weighting of the data", "egd.selection")
WEIGHTED = "energy_weights"
"""Name that replaces an estimate of E_t by a denoiser of the weighted data for every beta."""
EXACT, UNGUIDED = "exact", "unguided"
M = TypeVar("M", bound=nn.Module)


def is_trained(name: str) -> bool:
    """Return whether an estimator is an objective that trains a network rather than a closed form."""
    return catalogue.is_trained(name, "estimators")


def registry_of(name: str) -> Registry:
    """Return the registry of an estimator of this name."""
    return WEIGHTS if name == WEIGHTED else catalogue.energy_registry(name, "estimators")


def check_components(config: Toy2dConfig) -> None:
    """Raise UserError for a component that does not exist, or a setting that it does not have, before anything is trained."""
    schedule = make_schedule(config.schedule.spec)
    try:
        time_grid(schedule, 1, end=config.sampler.end, spacing=config.sampler.spacing)
    except ValueError as error:
        raise UserError(str(error), key="sampler") from None
    chosen = config.sampler.chosen()
    validate(POSTERIORS, config.posterior.spec, POSTERIOR_PARTS, "posterior")
    validate(RULES, config.rule.spec, RULE_PARTS, "rule")
    trial = Trial((2,), schedule)
    trial.sampler(config.sampler.spec, chosen, "sampler.name")
    trial.posterior(config.posterior.spec, "posterior")
    trial.rule(config.rule.spec, "rule")
    check_titles(config.estimators, (EXACT, UNGUIDED))
    for title, estimator in config.estimators.items():
        known = {**ENERGIES.names(), **OBJECTIVES.names(), WEIGHTED: energy_weights}
        if estimator.name not in known and ":" not in estimator.name:
            raise ENERGIES.unknown(estimator.name, f"estimators.{title}", known)
        validate(registry_of(estimator.name), estimator.spec, ENERGY_PARTS, f"estimators.{title}")
        if estimator.name != WEIGHTED:
            trial.energy(estimator.spec, f"estimators.{title}")


class Toy2dModel:
    """The denoiser of a data set, its posterior, and the intermediate energies of a recipe."""

    def __init__(self, config: Toy2dConfig, data: DataSet, device: torch.device) -> None:
        self.config, self.data, self.device = config, data, device
        self.schedule: Schedule = make_schedule(config.schedule.spec)
        s = config.sampler
        self.denoiser_fit = self._denoiser_fit("denoiser")
        self.calibration = RangeCalibration(self)
        self.networks: dict[tuple[str, float], nn.Module] = {}
        self.weighted: dict[tuple[str, float], Fit] = {}
        self.times = time_grid(self.schedule, s.steps, end=s.end, spacing=s.spacing).to(device)

    def _fresh(self, name: str, make: Callable[[], M]) -> M:
        """Make a network whose initial weights depend on the run's seed and its own name alone."""
        return fresh(self.config.seed, f"init/{name}", make).to(self.device)

    def _denoiser_fit(self, name: str) -> Fit:
        d = self.config.denoiser
        network = self._fresh(name, lambda: NoiseMLP(2, width=d.width, blocks=d.blocks))
        return Fit(network, lr=d.lr, steps=d.steps, decay=d.decay, ema=d.ema)

    def denoiser(self, fit: Fit | None = None) -> Denoiser:
        """Return the unguided denoiser of the data, or of another fit."""
        network = (fit or self.denoiser_fit).model
        return self._clipped(NetworkDenoiser(network, self.schedule, self.config.denoiser.prediction))

    def _clipped(self, denoiser: Denoiser) -> Denoiser:
        """Clip x_0 to the data's range, which contains every E[x_0 | x_t], guided or not; derivatives pass through the
        clipping.
        """
        low, high = self.calibration.low, self.calibration.high
        return Clip(denoiser, low, high, straight_through=True) if self.config.denoiser.clip_x0 else denoiser

    def parts(self, beta: float, generator: torch.Generator) -> dict[str, Any]:
        """Return the parts that an energy or a posterior may ask for by name; the calibration must be done."""
        basic = {"denoiser": self.denoiser(), "moments": self.calibration.moments, "schedule": self.schedule}
        return {
            **basic,
            "energy": self.data.energy,
            "posterior": build(POSTERIORS, self.config.posterior.spec, basic, "posterior"),
            "support": lambda c, k: self.data.sample(k, generator)[0][None],
            "beta": beta,
        }

    # -- training ------------------------------------------------------------------------------------------------

    def phases(self) -> Iterator[Phase]:
        """Yield the phases: the denoiser, its calibration, and one for every trained estimator and beta > 0. The latter are
        made once the calibration is trained, on which objectives may depend.
        """
        yield self._denoiser_phase("denoiser", self.denoiser_fit, None)
        yield Phase("calibration", 1, self.calibration)
        energies = []
        for name, estimator in self.config.estimators.items():
            make = self._weighted_phase if estimator.name == WEIGHTED else self._energy_phase
            if estimator.name == WEIGHTED or is_trained(estimator.name):
                energies += [make(name, estimator.spec, beta) for beta in self.config.betas if beta]
        yield from energies

    def _denoiser_phase(self, label: str, fit: Fit, weights: Weights | None) -> Phase:
        d = self.config.denoiser
        learner = DenoiserLearner(fit, self.schedule, self.data.sample, batch=d.batch, prediction=d.prediction, weights=weights)
        return Phase(label, d.steps, learner)

    def _weighted_phase(self, name: str, spec: Spec, beta: float) -> Phase:
        phase = f"denoiser_{name}_beta{label(beta)}"
        fit = self.weighted[name, beta] = self._denoiser_fit(phase)
        weights = build(WEIGHTS, spec, {"energy": self.data.energy, "beta": beta}, f"estimators.{name}")
        return self._denoiser_phase(phase, fit, weights)

    def _energy_phase(self, name: str, spec: Spec, beta: float) -> Phase:
        phase, e = f"energy_{name}_beta{label(beta)}", self.config.energy_network
        own = torch.Generator(self.device).manual_seed(seed_of(self.config.seed, f"{phase}/support"))
        objective = build(OBJECTIVES, spec, self.parts(beta, own), f"estimators.{name}")
        default = partial(EnergyMLP, 2, width=e.width, layers=e.layers, activation=e.activation)
        network = self._fresh(phase, lambda: energy_network(objective, (2,), 0, default))
        fit = Fit(network, lr=e.lr, steps=e.steps, decay=e.decay)
        self.networks[name, beta] = network
        return Phase(phase, e.steps, EnergyLearner(fit, self.schedule, self.data.sample, objective, batch=e.batch))

    # -- sampling ------------------------------------------------------------------------------------------------

    def timed_energy(self, name: str, beta: float, generator: torch.Generator) -> TimedEnergy:
        """Return the estimate of E_t, trained or closed form, prepared for one sampling run."""
        if (name, beta) in self.networks:
            return at_unit_scale(self.networks[name, beta], self.schedule)
        parts = self.parts(beta, generator)
        closed_form: TimedEnergy = build(ENERGIES, self.config.estimators[name].spec, parts, f"estimators.{name}")
        return prepare(closed_form, None)

    def sample(self, name: str | None, beta: float, n: int, generator: torch.Generator, omega: float = 1.0) -> Tensor:
        """Draw n samples (n, 2) guided by the estimator ``name``; unguided where it is None. The initial noise depends on the
        generator's state alone.
        """
        noise = initial_noise(self.schedule, (n, 2), self.times[0], generator)
        weighted = None if name is None else self.weighted.get((name, beta))
        denoiser = self.denoiser(weighted)
        if name is not None and weighted is None:
            rule = build(RULES, self.config.rule.spec, {"omega": omega}, "rule")
            timed = self.timed_energy(name, beta, generator)
            denoiser = self._clipped(guide(denoiser, timed, rule, self.schedule))
        sampler = self.config.sampler.chosen()
        return sampler(denoiser, self.schedule, noise, self.times, generator=generator)


class RangeCalibration:
    """The range of x_0, and the posterior's moments of the denoiser clipped to this range."""

    def __init__(self, model: Toy2dModel) -> None:
        self.model = model
        size = model.config.calibration.model_dump()
        self.posterior = Calibration({"moments": model.denoiser}, model.schedule, model.data.sample, **size)
        self.low, self.high = torch.full((2,), -4.5, device=model.device), torch.full((2,), 4.5, device=model.device)

    @property
    def moments(self) -> Moments | None:
        """The posterior's moments; None before the first update."""
        return self.posterior.moments.get("moments")

    @torch.no_grad()
    def update(self, generator: torch.Generator) -> Metrics:
        """Estimate the range and the moments anew."""
        points, _ = self.model.data.sample(100_000, generator)
        self.low, self.high = points.amin(0), points.amax(0)
        return self.posterior.update(generator)

    def state(self) -> dict[str, Tensor]:
        """Return the tensors for the checkpoint."""
        return {**self.posterior.state(), "low": self.low, "high": self.high}

    def load(self, state: dict[str, Tensor]) -> None:
        """Restore the tensors returned by ``state``."""
        self.low, self.high = state["low"], state["high"]
        self.posterior.load(state)
