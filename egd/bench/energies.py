"""Comparison of every estimator of E_t with the exact one: its gradient over t, and the samples that it leads to."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import pairwise
from typing import Any, TypeAlias

import torch
from torch import Tensor

from egd.bench.cases import Case
from egd.bench.estimators import EXACT, Training, closed_form, is_objective, reads_denoiser, single, trained
from egd.denoisers import NetworkDenoiser, diffuse
from egd.energies.base import prepare
from egd.guidance import guide
from egd.metrics import sliced_wasserstein
from egd.networks.mlp import NoiseMLP
from egd.posteriors import Tweedie, calibrate
from egd.rules import Additive
from egd.samplers import dpm_solver_pp_2m
from egd.samplers.watching import named
from egd.schedules import VPLinear, time_grid
from egd.tensors import isolated_rng, value_and_grad
from egd.training.learners import DenoiserLearner, Fit, train
from egd.types import Context, Denoiser, Schedule, TimedEnergy


@dataclass(frozen=True)
class EnergySettings:
    """The amount of work per row."""

    seed: int = 0
    samples: int = 1000
    """Guided samples, and as many exact samples to compare with."""
    steps: int = 30
    """Steps of DPM-Solver++(2M), uniform in log-SNR."""
    points: int = 256
    """States x_t ~ q_t at each time, at which gradients are compared."""
    times: Sequence[float] = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    projections: int = 200
    calibration: int = 8192
    """Samples at each time from which the posteriors' variances are estimated."""
    denoiser_steps: int = 5000
    energy: Training = field(default_factory=lambda: Training(2000))


@dataclass(frozen=True)
class EnergyRow:
    """One estimator on one problem.

    The gradient's relative error and cosine are means over t at x_t ~ q_t. ``target_error`` is the root of the mean over t of
    sigma_t^2 ||grad E_t - exact||^2 at x_t of the *target*, where guided samples pass, relative to the same root for no
    guidance; it ranks estimators as the quality of their samples does. ``nfe`` is the number of evaluations of the denoiser per
    sample, columns of its Jacobian included. ``seconds`` is the time of sampling. A distance or energy is None where samples
    diverged.
    """

    case: str
    beta: float
    denoiser: str
    estimator: str
    grad_rel_error: float
    grad_cosine: float
    target_error: float
    sliced_w2: float | None
    noise_floor: float
    mean_energy: float | None
    exact_mean_energy: float
    nfe: float
    seconds: float


@dataclass(frozen=True)
class Curve:
    """The gradient's error at each time, of which a row holds the mean."""

    case: str
    beta: float
    denoiser: str
    estimator: str
    t: tuple[float, ...]
    grad_rel_error: tuple[float, ...]
    grad_cosine: tuple[float, ...]


def finite(value: float) -> float | None:
    """Return the value, or None where it is not finite, since JSON has no such numbers."""
    return value if math.isfinite(value) else None


class Counted:
    """A denoiser that counts the rows that it evaluates."""

    def __init__(self, denoiser: Denoiser) -> None:
        self.denoiser, self.rows = denoiser, 0

    def __call__(self, x: Tensor, t: Tensor, c: Context = None) -> Tensor:
        """Evaluate the denoiser: (B, ...), (B,), c -> (B, ...)."""
        self.rows += len(x)
        return self.denoiser(x, t, c)


State: TypeAlias = tuple[Tensor, Tensor, Tensor]
"""x_t (B, D), t (B,) and the exact gradient there (B, D)"""


@dataclass(frozen=True)
class EnergyProblem:
    """One case at one beta with one denoiser: the parts of estimators, and the exact answers to compare with."""

    case: Case
    beta: float
    name: str
    denoiser: Counted
    schedule: Schedule
    settings: EnergySettings
    parts: Mapping[str, Any]
    states: list[State]
    target_states: list[State]
    targets: list[Tensor]

    def measure(self, label: str, energy: TimedEnergy) -> tuple[EnergyRow, Curve]:
        """Measure an estimator's gradients, then its samples. Returns the row and the curve of errors."""
        energy = prepare(energy, None)
        errors, cosines = zip(*[self._compare(energy, *state) for state in self.states], strict=True)
        self.denoiser.rows, start = 0, time.perf_counter()
        with named(label):
            samples = self._sample(energy)
        seconds, nfe = time.perf_counter() - start, self.denoiser.rows / len(samples)
        where = (self.case.name, self.beta, self.name, label)
        row = EnergyRow(
            *where,
            sum(errors) / len(errors),
            sum(cosines) / len(cosines),
            self._target_error(energy),
            finite(sum(self._distance(samples, target) for target in self.targets) / len(self.targets)),
            self._floor,
            finite(self._mean_energy(samples)),
            self._mean_energy(torch.cat(self.targets)),
            nfe,
            seconds,
        )
        return row, Curve(*where, tuple(self.settings.times), errors, cosines)

    @cached_property
    def _floor(self) -> float:
        """The mean distance between two sets of exact samples."""
        pairs = [self._distance(a, b) for a, b in pairwise(self.targets)]
        return sum(pairs) / len(pairs)

    def _distance(self, a: Tensor, b: Tensor) -> float:
        return float(sliced_wasserstein(a, b, self.settings.projections, _generator(7)))

    def _mean_energy(self, x: Tensor) -> float:
        return float(self.case.energy(x, None).mean())

    def _compare(self, energy: TimedEnergy, x: Tensor, t: Tensor, truth: Tensor) -> tuple[float, float]:
        """Return the relative error (root mean square) and the mean cosine of grad E_t at one time."""
        _, grad = value_and_grad(lambda x: energy(x, t, None), x)
        error = (grad - truth).square().sum().sqrt() / truth.square().sum().sqrt()
        cosine = torch.nn.functional.cosine_similarity(grad, truth, eps=1e-12)  # 0 where a gradient has vanished
        return float(error), float(cosine.mean())

    def _target_error(self, energy: TimedEnergy) -> float:
        """Return the sigma-weighted relative error of the gradient at x_t of the target, over all times."""
        wrong, right = [], []
        for x, t, truth in self.target_states:
            _, grad = value_and_grad(lambda x, t=t: energy(x, t, None), x)  # type: ignore[misc]
            weight = self.schedule.sigma(t) ** 2
            wrong.append((weight * (grad - truth).square().sum(1)).mean())
            right.append((weight * truth.square().sum(1)).mean())
        return float((sum(wrong) / sum(right)) ** 0.5)

    def _sample(self, energy: TimedEnergy) -> Tensor:
        s = self.settings
        noise = torch.randn(s.samples, self.case.dim, generator=_generator(s.seed + 3), dtype=torch.float64)
        times = time_grid(self.schedule, s.steps, spacing="log_snr").double()
        guided = guide(self.denoiser, energy, Additive(), self.schedule)
        # in pieces of 250 rows: tensors of hundreds of MB would be mapped and unmapped at every step
        return torch.cat([dpm_solver_pp_2m(guided, self.schedule, part, times) for part in torch.split(noise, 250)])


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def run(
    case: Case, betas: Sequence[float], denoisers: Sequence[str], estimators: Mapping[str, Any], settings: EnergySettings
) -> Iterator[tuple[EnergyRow, Curve]]:
    """Yield the rows of one case as they are measured. ``denoisers`` are from ``exact`` and ``trained``."""
    schedule = VPLinear()
    exact = lambda x, t, c=None: case.mixture.denoise(schedule, x, t)  # noqa: E731
    sample = lambda n, g: (case.mixture.sample(n, g), None)  # noqa: E731
    support = lambda c, k: case.mixture.sample(k, _generator(settings.seed + 1))[None]  # noqa: E731
    networks: dict[tuple[str, float, str], TimedEnergy] = {}
    for name in denoisers:
        plain = exact if name == "exact" else _train(case, schedule, settings)
        counted = Counted(plain)
        common = {"energy": case.energy, "denoiser": counted, "schedule": schedule, "support": support}
        common["posterior"] = Tweedie(counted, schedule)
        common["moments"] = calibrate(
            plain, schedule, sample, generator=_generator(settings.seed + 2), samples=settings.calibration
        )
        for beta in betas:
            problem = _problem(case, beta, name, counted, schedule, settings, {**common, "beta": beta})
            yield problem.measure(EXACT, partial(_exact, case, schedule, beta))
            for label, spec in estimators.items():
                yield problem.measure(label, _make(problem, label, spec, networks, sample))


def _exact(case: Case, schedule: Schedule, beta: float, x: Tensor, t: Tensor, c: Context = None) -> Tensor:
    return case.exact(schedule, beta, x, t)


def _make(problem: EnergyProblem, label: str, spec: Any, networks: dict[Any, TimedEnergy], sample: Any) -> TimedEnergy:
    """Make a closed form, or train a network. A network whose objective does not depend on the denoiser serves both
    denoisers.
    """
    if not is_objective(spec):
        return closed_form(spec, problem.parts)
    key = (label, problem.beta, problem.name if reads_denoiser(spec) else "")
    if key not in networks:
        s = problem.settings
        networks[key] = trained(spec, problem.parts, sample, s.energy, problem.case.dim, s.seed)
    return networks[key]


def _problem(
    case: Case,
    beta: float,
    name: str,
    denoiser: Counted,
    schedule: Schedule,
    settings: EnergySettings,
    parts: Mapping[str, Any],
) -> EnergyProblem:
    generator = _generator(settings.seed + 5)
    times = [torch.full((settings.points,), time_, dtype=torch.float64) for time_ in settings.times]
    exact = partial(_exact, case, schedule, beta)
    states = [_state(exact, case.mixture.noised(schedule, t, generator), t) for t in times]
    targets = [case.target(beta, settings.samples, generator) for _ in range(6)]
    own = _generator(settings.seed + 6)
    target_states = [_state(exact, _noised(case.target(beta, settings.points, own), schedule, t, own), t) for t in times]
    return EnergyProblem(case, beta, name, denoiser, schedule, settings, parts, states, target_states, targets)


def _state(exact: TimedEnergy, x: Tensor, t: Tensor) -> State:
    return x, t, value_and_grad(lambda x: exact(x, t, None), x)[1]


def _noised(x0: Tensor, schedule: Schedule, t: Tensor, generator: torch.Generator) -> Tensor:
    return diffuse(schedule, x0, t, torch.randn(x0.shape, generator=generator, dtype=x0.dtype))


def _train(case: Case, schedule: Schedule, settings: EnergySettings) -> Denoiser:
    """Train a denoiser for the case's distribution on fresh samples. The network predicts v: at high noise, an error in
    predicted noise would be magnified by sigma / alpha in x_0 and in its Jacobian, an error in v is not.
    """
    with isolated_rng(settings.seed):
        network = NoiseMLP(case.dim, width=128, blocks=4)
    fit = Fit(network, lr=1e-3, steps=settings.denoiser_steps, decay=True, ema=0.99)
    sample = lambda n, g: (case.mixture.sample(n, g).float(), None)  # noqa: E731
    learner = DenoiserLearner(fit, schedule, sample, batch=256, prediction="v_prediction")
    train(learner, settings.denoiser_steps, _generator(settings.seed))
    return single(NetworkDenoiser(fit.model.requires_grad_(False), schedule, "v_prediction"))


def smoke(settings: EnergySettings) -> EnergySettings:
    """Reduce the settings so that a trial takes seconds instead of minutes."""
    few: dict[str, Any] = {"samples": 200, "steps": 10, "points": 32, "times": (0.1, 0.5, 0.9), "calibration": 256}
    return replace(settings, **few, denoiser_steps=100, energy=Training(50))
