"""EDIS (arXiv:2407.12448): transitions of a diffusion model of the replay, guided towards those of the current policy pi.

Theorem 3.1, x = (s, a, r, s'), q the density of the replay, T the dynamics:

    p(x) = d^pi(s) pi(a|s) T(r, s'|s, a) ∝ q(x) exp(-E(x)),    E = E1(s) + E2(a|s) + E3(r, s'|s, a)

    E1 = -log d^pi(s) / q(s)    E2 = -log pi(a|s) / q(a|s)    E3 = -log T(r, s'|s, a) / q(r, s'|s, a)

The algorithm:

    offline         fit q to D_off                                                            TransitionModel.learner
    every refresh   1. fit q further to D_off and D_on                                        TransitionModel.learn
                    2. learn w = -E by telling transitions of p from those of q               LogWeights.learn
                    3. learn E_t(x_t) = -log E[exp(-E(x_0)) | x_t]                            EDIS.intermediate_energy
                    4. replace D_gen by samples of q guided by E_t                            TransitionModel.generate
    every update    hand a batch of D_on and D_gen to the base algorithm                      rl.online.learner
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from typing_extensions import override

from egd.bounds import Layers, NotNegative, Omega, ProperShare, Rate, Samples, Steps
from egd.config.base import ComponentConfig
from egd.config.catalogue import POSTERIORS, RULES, check_energy, energy_registry, is_trained
from egd.config.components import build, validate, wanted_parts
from egd.config.parts import POSTERIOR_PARTS, RATIO_PARTS
from egd.config.sections import NetworkConfig
from egd.config.trial import Trial
from egd.denoisers import at_unit_scale
from egd.energies.clean import at_zero
from egd.errors import UserError
from egd.guidance import guide
from egd.networks.mlp import EnergyMLP
from egd.objectives.base import energy_network
from egd.objectives.ratio import Ratio
from egd.posteriors import calibrate
from egd.schedules.edm import EDM
from egd.training.learners import EnergyLearner, Fit, Metrics, train
from egd.training.times import LogNormalTimes
from egd.types import Context, Denoiser, Sample, TimedEnergy
from rl.data.transitions import Batch, drawn
from rl.online.generators.base import Generator, GeneratorContext
from rl.online.replay import Replay
from rl.online.transition_codec import TerminalModel, TransitionCodec
from rl.online.transition_model import MODEL, SAMPLER, SCHEDULE, ModelConfig, StepsConfig, TransitionModel
from rl.parts.base import Part
from rl.tasks import Task

__all__ = ["EDIS"]

Term = Literal["state", "action", "transition"]
Draw = Callable[[int, torch.Generator], Tensor]
"""Draws n vectors (n, D) with a generator of random numbers."""

GRID, SAMPLES = 12, 2048  # times of a calibration, and the number of rows of a calibration or of a weight's statistics
KEY = "online.generator"


class RatioConfig(NetworkConfig):
    """Settings of the networks of the log-weights; ``steps`` are taken at every refresh."""

    layers: Layers = 2
    steps: Steps = 500
    lr: Rate = 1e-3
    window: Steps = 5000
    """Number of the last online transitions that represent p; 0 for all."""
    actions: Literal["policy", "replay"] = "policy"
    """Actions of p: drawn from the current policy in the states of the window, or those recorded there."""
    headroom: NotNegative = 0.5
    """Upper bound of a log-weight above -log f, where f is the share of the window in q.

    q contains the states of p, with their recorded actions, in the share f, so that -log f bounds their log-weight. Actions
    drawn from the policy have no such bound; there the limit keeps a few rows from dominating.
    """
    floor: NotNegative = 5
    """Magnitude of the lower bound of a log-ratio. Where p has almost no density, the network's log p / q is arbitrary, and
    the difference of two such ratios, as for actions alone, would be noise.
    """


class TimedConfig(NetworkConfig):
    """Settings of the network of the intermediate energy; ``steps`` are taken at every refresh."""

    steps: Steps = 500
    lr: Rate = 1e-3


RATIO, TIMED = RatioConfig(), TimedConfig()
SUPPORT = ComponentConfig.model_validate({"name": "support_samples", "samples": 256})
RESIDUAL = ComponentConfig(name="residual")
ADDITIVE = ComponentConfig(name="additive")
TERMS: Mapping[Term, float] = {"state": 1.0, "action": 1.0}


class EDIS(Generator):
    """EDIS, the algorithm above; each refresh continues from the networks of the one before.

    ``terms`` weighs E1, E2 and E3. ``energy`` is any energy or objective of egd for E_t. A closed form evaluates E = -w; an
    objective trains a network on all of x_t, whose other coordinates carry information about (s, a) even where E depends on
    these alone; ``ratio`` needs no E, because it discriminates noised online transitions, as recorded, from replayed ones.
    ``rule`` and ``omega`` are those of guidance; the other settings are those of ``Diffusion``, which is EDIS without
    guidance.
    """

    def __init__(
        self,
        context: GeneratorContext,
        *,
        schedule: ComponentConfig = SCHEDULE,
        denoiser: ModelConfig = MODEL,
        sampler: StepsConfig = SAMPLER,
        refresh_steps: Steps = 500,
        samples: Samples = 20_000,
        terminal: TerminalModel = "generated",
        warm_start: bool = True,
        reach: NotNegative = 0.1,
        online_share: ProperShare | None = None,
        terms: Mapping[Term, NotNegative] = TERMS,
        ratio: RatioConfig = RATIO,
        energy: ComponentConfig = SUPPORT,
        energy_network: TimedConfig = TIMED,
        posterior: ComponentConfig = RESIDUAL,
        rule: ComponentConfig = ADDITIVE,
        omega: Omega = 1.0,
    ) -> None:
        self.model = TransitionModel(
            context,
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
        self.window, self.energy, self.posterior, self.network_settings = ratio.window, energy, posterior, energy_network
        self.rule = build(RULES, rule.spec, {"omega": omega}, f"{KEY}.rule")
        self.wanted = wanted_of(energy)
        from_samples = "wanted" in self.wanted  # E_t is then learned from transitions of p, without E
        self.weights = None if from_samples else LogWeights(context, self.model.codec, terms, ratio)
        trained = is_trained(energy.name, f"{KEY}.energy")
        self._try_components(rule)
        self.network = context.fresh("generator/energy", self._energy_network) if trained else None

    def _try_components(self, rule: ComponentConfig) -> None:
        """Try the user's own components on a few rows. Raises UserError for one that fails or breaks its contract."""
        trial = Trial((self.model.codec.size,), self.model.schedule)
        trial.energy(self.energy.spec, f"{KEY}.energy")
        trial.posterior(self.posterior.spec, f"{KEY}.posterior")
        trial.rule(rule.spec, f"{KEY}.rule")

    def _energy_network(self) -> nn.Module:
        n, size = self.network_settings, self.model.codec.size
        own = Trial((size,), self.model.schedule).own_objective(self.energy.spec, 1.0, f"{KEY}.energy")
        default = partial(EnergyMLP, size, width=n.width, layers=n.layers, activation=n.activation)
        return energy_network(own, (size,), 0, default)

    @classmethod
    @override
    def check(cls, settings: Mapping[str, Any], task: Task) -> None:
        TransitionModel.check(settings, task)
        energy = ComponentConfig.model_validate(settings.get("energy", SUPPORT))
        check_energy(energy.spec, RATIO_PARTS, f"{KEY}.energy")
        if "wanted" in wanted_of(energy):
            check_without_weights(energy.name, settings)
        posterior = ComponentConfig.model_validate(settings.get("posterior", RESIDUAL))
        validate(POSTERIORS, posterior.spec, POSTERIOR_PARTS, f"{KEY}.posterior")
        try:
            rule = ComponentConfig.model_validate(settings.get("rule", ADDITIVE))
            build(RULES, rule.spec, {"omega": settings.get("omega", 1.0)}, f"{KEY}.rule")
        except ValueError as error:
            raise UserError(str(error), key=f"{KEY}.rule") from None
        if not any(settings.get("terms", TERMS).values()):
            raise UserError("all terms weigh 0; use omega: 0, or the generator diffusion", key=f"{KEY}.terms")

    # -- the algorithm -------------------------------------------------------------------------------------------

    @override
    def parts(self) -> Sequence[Part]:
        return self.model.parts()

    @override
    def refresh(self, online: Replay, generator: torch.Generator) -> Metrics:
        metrics = self.model.learn(online, generator)  # 1. q
        denoiser, more = self.guided_denoiser(online, generator)  # 2. w and 3. E_t
        return metrics | more | self.model.generate(denoiser, generator)  # 4. D_gen

    def guided_denoiser(self, online: Replay, generator: torch.Generator) -> tuple[Denoiser, Metrics]:
        """Guide the model towards p, represented by the last online transitions: score - omega grad E_t."""
        recent = online.recent(self.window or len(online))
        metrics = self.learn_weights(recent, generator)  # E = -w
        energy, more = self.intermediate_energy(recent, generator)
        return guide(self.model.denoiser, energy, self.rule, self.model.schedule), metrics | more

    def learn_weights(self, recent: Batch, generator: torch.Generator) -> Metrics:
        """Learn w = -E from ``recent`` transitions of p and replayed transitions of q; E3 also needs samples of the model."""
        if self.weights is None:
            return {}
        model, mixture = self.model, self.model.mixture
        samples = model.draw(model.denoiser, SAMPLES, generator) if "transition" in self.weights.parts else None
        of_model = None if samples is None else partial(drawn, samples)
        metrics = self.weights.learn(recent, mixture.draw, mixture.share_of(len(recent)), of_model, generator)
        return metrics | self.weights.spread(mixture.draw(SAMPLES, generator))

    def intermediate_energy(self, recent: Batch, generator: torch.Generator) -> tuple[TimedEnergy, Metrics]:
        """Build E_t, and train its network if it has one."""
        parts = self._parts(recent, generator)
        component = build(energy_registry(self.energy.name, f"{KEY}.energy"), self.energy.spec, parts, f"{KEY}.energy")
        if self.network is None:
            closed_form: TimedEnergy = component
            return closed_form, {}
        n, schedule, fresh = self.network_settings, self.model.schedule, self.model.refreshes == 1
        fit = Fit(self.network, lr=n.lr, steps=n.steps, decay=n.decay)
        times = LogNormalTimes(schedule, -0.5, 1.5)
        learner = EnergyLearner(fit, schedule, self._replayed, component, batch=n.batch, times=times, fresh=fresh)
        metrics = train(learner, n.steps, generator)
        return at_unit_scale(self.network, schedule), {"energy_loss": metrics["loss"]} if metrics else {}

    def clean_energy(self, x0: Tensor, c: Context = None) -> Tensor:
        """Compute E(x) = -w(x): (B, D) -> (B,)."""
        assert self.weights is not None
        return -self.weights(x0)

    def _parts(self, recent: Batch, generator: torch.Generator) -> dict[str, Any]:
        """Return the parts that energies and objectives may ask for."""
        model, encoded = self.model, self.model.codec.encode(recent)
        parts: dict[str, Any] = {
            "schedule": model.schedule,
            "denoiser": model.denoiser,
            "beta": 1.0,
            "energy": self.clean_energy,
            "support": lambda c, k: model.mixture.draw(k, generator)[None],  # (1, K, D)
            "wanted": lambda n, g: (drawn(encoded, n, g), None),
        }
        if self.wanted & {"posterior", "moments"}:
            moments = calibrate(model.denoiser, model.schedule, self._replayed, generator=generator, grid=GRID, samples=SAMPLES)
            basic = {"denoiser": model.denoiser, "schedule": model.schedule, "moments": moments}
            parts |= {"moments": moments, "posterior": build(POSTERIORS, self.posterior.spec, basic, f"{KEY}.posterior")}
        return parts

    def _replayed(self, n: int, generator: torch.Generator) -> tuple[Tensor, None]:
        return self.model.mixture.draw(n, generator), None

    @override
    def sample(self, n: int, generator: torch.Generator) -> Batch:
        return self.model.sample(n, generator)

    # -- checkpoints ---------------------------------------------------------------------------------------------

    @override
    def networks(self) -> dict[str, nn.Module]:
        weights = {} if self.weights is None else self.weights.networks()
        energy = {} if self.network is None else {"energy": self.network}
        return {**self.model.networks(), **weights, **energy}

    @override
    def state(self) -> dict[str, Tensor]:
        return self.model.state()

    @override
    def load(self, state: Mapping[str, Tensor]) -> None:
        self.model.load(state)


class LogWeights:
    """Log-weight w(x) = -(lambda_1 E1 + lambda_2 E2 + lambda_3 E3) of vectors x (B, D) of ``codec``; ``terms`` has the lambdas
    by name.

    Each network discriminates samples of two densities. -E1 is the log-ratio of s. -E2 is the log-ratio of (s, a) minus that
    of s, so that it is normalised in every state, as the theorem requires; a contrast within each state would leave a function
    of s undetermined. -E3 is the log-ratio of real transitions to samples of the model.
    """

    def __init__(
        self, context: GeneratorContext, codec: TransitionCodec, terms: Mapping[Term, float], config: RatioConfig
    ) -> None:
        self.context, self.codec, self.config = context, codec, config
        state, action = terms.get("state", 0.0), terms.get("action", 0.0)
        parts = {
            "state": (codec.state, state - action),
            "state_action": (codec.state_action, action),
            "transition": (slice(0, codec.size), terms.get("transition", 0.0)),
        }
        self.parts = {name: part for name, (part, factor) in parts.items() if factor}
        self.factors = {name: factor for name, (_, factor) in parts.items() if factor}
        self.by_part = {name: self._network(name, part) for name, part in self.parts.items()}
        self.most = math.inf

    def _network(self, name: str, part: slice) -> EnergyMLP:
        c, size = self.config, part.stop - part.start
        network: EnergyMLP = self.context.fresh(
            f"ratio/{name}", lambda: EnergyMLP(size, width=c.width, layers=c.layers, activation=c.activation)
        )
        return network

    def networks(self) -> dict[str, nn.Module]:
        """Return, by name, the networks that a refresh continues from."""
        return {f"ratio_{name}": network for name, network in self.by_part.items()}

    # -- learning ------------------------------------------------------------------------------------------------

    def learn(self, recent: Batch, replayed: Draw, share: float, of_model: Draw | None, generator: torch.Generator) -> Metrics:
        """Learn all parts, and return metrics.

        p is represented by the ``recent`` online rows, q by vectors that ``replayed`` draws, of which the share ``share`` is
        recent. For E3, ``of_model`` draws samples of the model.
        """
        self.most = self.config.headroom - math.log(max(share, 1e-9))
        of_policy = partial(self._of_policy, recent)
        metrics: Metrics = {}
        for name in self.parts:
            if name == "transition":
                assert of_model is not None
                found = self.discriminate(name, replayed, of_model, generator)
            else:
                found = self.discriminate(name, of_policy, replayed, generator)
            metrics |= {f"{name}_{key}": value for key, value in found.items()}
        return metrics

    def discriminate(self, name: str, p: Draw, q: Draw, generator: torch.Generator) -> Metrics:
        """Fit E = -log p / q of one part to mean_p softplus(E) + mean_q softplus(-E)."""
        c, part = self.config, self.parts[name]
        loss = Ratio(EDM(), marginal(p, part), clean=True)
        fit = Fit(self.by_part[name], lr=c.lr, steps=c.steps, decay=c.decay)
        learner = EnergyLearner(fit, EDM(), marginal(q, part), loss, batch=c.batch)
        metrics = train(learner, c.steps, generator)
        return {key: metrics[key] for key in ("loss", "auc") if key in metrics}

    def _of_policy(self, recent: Batch, n: int, generator: torch.Generator) -> Tensor:
        """Draw (s, a) of p: recent states, and actions of pi in them or the recorded ones."""
        rows = drawn(recent, n, generator)
        action = rows.action if self.config.actions == "replay" else self.context.act(rows.state, generator)
        return self.codec.encode_pairs(rows.state, action)

    # -- evaluation ----------------------------------------------------------------------------------------------

    def __call__(self, x: Tensor) -> Tensor:
        """Compute w: (B, D) -> (B,)."""
        return self._unbounded(x).clamp(max=self.most)

    def _unbounded(self, x: Tensor) -> Tensor:
        parts = [factor * self._part(name, x) for name, factor in self.factors.items()]
        return torch.stack(parts).sum(0)

    def _part(self, name: str, x: Tensor) -> Tensor:
        value: Tensor = -at_zero(self.by_part[name])(x[:, self.parts[name]], None)
        return value.clamp(-self.config.floor, self.most)

    @torch.no_grad()
    def spread(self, x: Tensor) -> Metrics:
        """Measure, for vectors (B, D) of q, the effective share of the weighted rows and the share at the upper bound."""
        w = self._unbounded(x)
        found = {"effective_share": effective_share(w.clamp(max=self.most))}
        return found | {"at_most": (w >= self.most - 1e-6).float().mean()}


def effective_share(log_weights: Tensor) -> Tensor:
    """Compute (sum e^w)^2 / (n sum e^2w), (): Kish's effective share of n rows with these log-weights."""
    w = log_weights.double()
    return (2 * w.logsumexp(0) - (2 * w).logsumexp(0) - math.log(len(w))).exp().float()


def marginal(draw: Draw, part: slice) -> Sample:
    """Return a sampler of these coordinates alone."""
    return lambda n, generator: (draw(n, generator)[:, part], None)


# -- what energies may ask for -------------------------------------------------------------------------------------------


def wanted_of(energy: ComponentConfig) -> set[str]:
    """Return the names of the parts that an energy or an objective asks for."""
    return wanted_parts(energy_registry(energy.name, f"{KEY}.energy"), energy.spec, RATIO_PARTS, f"{KEY}.energy")


def check_without_weights(energy: str, settings: Mapping[str, Any]) -> None:
    """Raise UserError for settings that define a weight where none is used; settings of its training may stay in a recipe."""
    unused = ["terms"] * ("terms" in settings) + ["ratio.actions"] * ("actions" in dict(settings.get("ratio", {})))
    if unused:
        raise UserError(
            f"the energy '{energy}' is learned from the online transitions as they were, without a weight of (s, a); "
            f"leave out {', '.join(unused)}, or take another energy, such as cep",
            key=KEY,
        )
