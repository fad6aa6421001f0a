"""EDIS: the diffusion of transitions, guided towards those of the policy of the day."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from egd.bounds import Layers, NotNegative, Omega, Rate, Samples, Steps, Width
from egd.config.base import ComponentConfig
from egd.config.catalogue import POSTERIORS, RULES, check_energy, energy_registry, is_trained
from egd.config.components import build, validate, wanted_parts
from egd.config.sections import NetworkConfig
from egd.denoisers import at_unit_scale
from egd.errors import UserError
from egd.guidance import guide
from egd.networks.mlp import EnergyMLP
from egd.posteriors import calibrate
from egd.training.learners import EnergyLearner, Fit, Metrics, train
from egd.training.times import LogNormalTimes
from egd.types import Context, Denoiser, TimedEnergy
from rl.data.transitions import Batch, drawn
from rl.online.generators.base import GeneratorContext
from rl.online.generators.diffusion import MODEL, SAMPLER, SCHEDULE, Diffusion, ModelConfig, StepsConfig
from rl.online.ratios import RATIO, LogWeights, RatioConfig, Term
from rl.online.replay import Replay
from rl.online.replay_mixture import Share
from rl.online.transition_codec import TerminalModel
from rl.tasks import Task

__all__ = ["EDIS"]

PARTS = {"energy", "schedule", "denoiser", "posterior", "moments", "support", "wanted", "beta"}
POSTERIOR_PARTS = {"denoiser", "schedule", "moments"}
GRID, SAMPLES = 12, 2048  # of a calibration, where an energy needs one
KEY = "online.generator"


class TimedConfig(NetworkConfig):
    """The network of the intermediate energy; ``steps`` of every refresh."""

    width: Width = 256
    layers: Layers = 3
    steps: Steps = 500
    lr: Rate = 1e-3


SUPPORT = ComponentConfig.model_validate({"name": "support_samples", "samples": 256})
RESIDUAL = ComponentConfig(name="residual")
ADDITIVE = ComponentConfig(name="additive")
TIMED = TimedConfig()
TERMS: Mapping[Term, float] = {"state": 1.0, "action": 1.0}


class EDIS(Diffusion):
    """EDIS (arXiv:2407.12448): samples of q(x) e^w(x), q the model of offline and online transitions and w the log-weight of
    those of the policy of the day, by the intermediate energy E_t(x_t) = -log E[e^w | x_t].

    ``terms`` weighs the parts of w (``rl.online.ratios``). ``energy`` is any energy or objective of egd: a closed form looks
    at -w; an objective trains a network on all of x_t, which knows of (s, a) even where w depends on these alone; ``ratio``
    asks for no w: it tells noised online transitions, as they were, from replayed ones. ``rule`` and ``omega`` as ever.
    """

    def __init__(
        self,
        world: GeneratorContext,
        *,
        schedule: ComponentConfig = SCHEDULE,
        denoiser: ModelConfig = MODEL,
        sampler: StepsConfig = SAMPLER,
        refresh_steps: Steps = 500,
        samples: Samples = 20_000,
        terminal: TerminalModel = "generated",
        warm_start: bool = True,
        reach: NotNegative = 0.1,
        online_share: Share | None = None,
        terms: Mapping[Term, NotNegative] = TERMS,
        ratio: RatioConfig = RATIO,
        energy: ComponentConfig = SUPPORT,
        energy_network: TimedConfig = TIMED,
        posterior: ComponentConfig = RESIDUAL,
        rule: ComponentConfig = ADDITIVE,
        omega: Omega = 1.0,
    ) -> None:
        super().__init__(
            world,
            schedule=schedule,
            denoiser=denoiser,
            sampler=sampler,
            refresh_steps=refresh_steps,
            samples=samples,
            terminal=terminal,
            warm_start=warm_start,
            reach=reach,
            online_share=online_share,
        )
        self.energy, self.posterior, self.network_settings = energy, posterior, energy_network
        self.rule = build(RULES, rule.spec, {"omega": omega}, f"{KEY}.rule")
        self.ratio = ratio
        self.weights = None if self.direct else LogWeights(world, self.vectors, terms, ratio)
        self.network = (
            world.fresh("generator/energy", self._energy_network) if is_trained(energy.name, f"{KEY}.energy") else None
        )

    @classmethod
    def check(cls, settings: Mapping[str, Any], task: Task) -> None:
        """UserError for components that do not exist or do not have these settings, and for terms that all weigh nothing."""
        super().check(settings, task)
        energy = ComponentConfig.model_validate(settings.get("energy", SUPPORT))
        check_energy(energy.spec, PARTS, f"{KEY}.energy")
        if "wanted" in _wanted_parts(energy):
            _check_direct(energy.name, settings)
        posterior = ComponentConfig.model_validate(settings.get("posterior", "residual"))
        validate(POSTERIORS, posterior.spec, POSTERIOR_PARTS, f"{KEY}.posterior")
        try:
            rule = ComponentConfig.model_validate(settings.get("rule", "additive"))
            build(RULES, rule.spec, {"omega": settings.get("omega", 1.0)}, f"{KEY}.rule")
        except ValueError as error:
            raise UserError(str(error), key=f"{KEY}.rule") from None
        if not any(settings.get("terms", TERMS).values()):
            raise UserError("all terms weigh 0; use omega: 0, or the generator diffusion", key=f"{KEY}.terms")

    @property
    def direct(self) -> bool:
        """Whether the energy is learned from samples of p, without a clean weight."""
        return "wanted" in _wanted_parts(self.energy)

    def _energy_network(self) -> EnergyMLP:
        n = self.network_settings
        return EnergyMLP(self.vectors.size, width=n.width, layers=n.layers, activation=n.activation)

    # -- the guided denoiser -------------------------------------------------------------------------------------

    def denoiser(self, online: Replay, generator: torch.Generator) -> tuple[Denoiser, Metrics]:
        """Guided by an energy learned from the online transitions."""
        recent = online.recent(self.ratio.window or len(online))
        metrics = self._weigh(recent, generator)
        timed, more = self._timed(recent, generator)
        return guide(self.plain(), timed, self.rule, self.schedule), metrics | more

    def _weigh(self, recent: Batch, generator: torch.Generator) -> Metrics:
        if self.weights is None:
            return {}
        samples = self.draw(self.plain(), SAMPLES, generator) if "transition" in self.weights.parts else None

        def generated(n: int, generator: torch.Generator) -> Tensor:
            assert samples is not None
            return drawn(samples, n, generator)

        share = self.pool.share_of(len(recent))
        metrics = self.weights.train(recent, self.pool.draw, share, None if samples is None else generated, generator)
        return metrics | self.weights.spread(self.pool.draw(SAMPLES, generator))

    def _timed(self, recent: Batch, generator: torch.Generator) -> tuple[TimedEnergy, Metrics]:
        parts = self._parts(recent, generator)
        component = build(energy_registry(self.energy.name, f"{KEY}.energy"), self.energy.spec, parts, f"{KEY}.energy")
        if self.network is None:
            timed: TimedEnergy = component
            return timed, {}
        n = self.network_settings
        fit = Fit(self.network, lr=n.lr, steps=n.steps, decay=n.decay)
        times = LogNormalTimes(self.schedule, -0.5, 1.5)

        def sample(count: int, generator: torch.Generator) -> tuple[Tensor, None]:
            return self.pool.draw(count, generator), None

        learner = EnergyLearner(fit, self.schedule, sample, component, batch=n.batch, times=times, fresh=self.refreshes == 0)
        metrics = train(learner, n.steps, generator)
        return at_unit_scale(self.network, self.schedule), {"energy_loss": metrics["loss"]} if metrics else {}

    def _parts(self, recent: Batch, generator: torch.Generator) -> dict[str, Any]:
        """What energies and objectives may ask for."""
        wanted, denoiser = _wanted_parts(self.energy), self.plain()
        parts: dict[str, Any] = {"schedule": self.schedule, "denoiser": denoiser, "beta": 1.0, "energy": self._clean}
        parts["support"] = partial(self._support, generator)
        encoded = self.vectors.encode(recent)
        parts["wanted"] = lambda n, g: (drawn(encoded, n, g), None)
        if wanted & {"posterior", "moments"}:
            moments = calibrate(
                denoiser,
                self.schedule,
                lambda n, g: (self.pool.draw(n, g), None),
                generator=generator,
                grid=GRID,
                samples=SAMPLES,
            )
            basic = {"denoiser": denoiser, "schedule": self.schedule, "moments": moments}
            parts |= {"moments": moments, "posterior": build(POSTERIORS, self.posterior.spec, basic, f"{KEY}.posterior")}
        return parts

    def _clean(self, x0: Tensor, c: Context = None) -> Tensor:
        """E(x) = -w(x)."""
        assert self.weights is not None
        return -self.weights(x0)

    def _support(self, generator: torch.Generator, c: Context, k: int) -> Tensor:
        """K replayed vectors: (1, K, D)"""
        return self.pool.draw(k, generator)[None]

    def modules(self) -> dict[str, nn.Module]:
        """The model, the ratios, the energy network."""
        ratios = {} if self.weights is None else self.weights.modules()
        energy = {} if self.network is None else {"energy": self.network}
        return {**super().modules(), **ratios, **energy}


def _wanted_parts(energy: ComponentConfig) -> set[str]:
    return wanted_parts(energy_registry(energy.name, f"{KEY}.energy"), energy.spec, PARTS, f"{KEY}.energy")


def _check_direct(energy: str, settings: Mapping[str, Any]) -> None:
    """UserError for settings of which weight is meant, where there is none; how one is trained may stay in a recipe."""
    unused = ["terms"] * ("terms" in settings) + ["ratio.actions"] * ("actions" in dict(settings.get("ratio", {})))
    if unused:
        raise UserError(
            f"the energy '{energy}' is learned from the online transitions as they were, without a weight of (s, a); "
            f"leave out {', '.join(unused)}, or take another energy, such as cep",
            key=KEY,
        )
