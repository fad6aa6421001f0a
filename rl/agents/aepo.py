"""AEPO (arXiv:2505.01822, Algorithm 1): behaviour diffusion, implicit Q-learning, an intermediate energy, guided sampling.

The target policy is pi(a|s) ~ mu(a|s) exp(beta Q(s, a)) (Eq. 4); the energy handed to ``egd`` is E(a, s) = V(s) - Q(s,
a), which differs from
-Q by a function of s alone and so guides in the same way, but spares a network the job of learning V.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from egd import batched
from egd.catalogue import ENERGIES, OBJECTIVES, POSTERIORS, RULES, SCHEDULES
from egd.checkpoint import group, prefixed
from egd.components import Spec, build, validate, wanted_parts
from egd.denoisers import NetworkDenoiser, at_unit_scale
from egd.errors import UserError, nearest
from egd.networks import EnergyMLP, NoiseMLP
from egd.phases import Phase, seed_of
from egd.posteriors import Moments, calibrate, residual
from egd.schedules import time_grid
from egd.training import DenoiserLearner, EnergyLearner, Fit, Learner, Metrics
from egd.types import Context, Denoiser, Energy, Schedule, TimedEnergy
from egd.wrappers import Clip
from rl.config import GuidanceConfig, RunConfig
from rl.critics import IQL, CriticLearner, MinusAdvantage
from rl.data import OfflineData
from rl.policies import BehaviourSupport, Choice, GuidedPolicy, Randomness, Sampler

POSTERIOR_PARTS = {"denoiser", "schedule", "moments"}
ENERGY_PARTS = {"energy", "posterior", "support", "beta"} | POSTERIOR_PARTS


def is_trained(guidance: GuidanceConfig) -> bool:
    """Whether the energy is an objective that trains a network, rather than a closed form."""
    name = guidance.energy.name
    if ":" in name:
        return hasattr(ENERGIES.find(name, "guidance.energy"), "loss")
    return name in OBJECTIVES.names()


def component_parts(guidance: GuidanceConfig) -> set[str]:
    """The parts that an arm's energy, or what is nested in it, asks for."""
    registry = OBJECTIVES if is_trained(guidance) else ENERGIES
    return wanted_parts(registry, guidance.energy.spec, ENERGY_PARTS, "guidance.energy")


def make_schedule(spec: Spec) -> Schedule:
    """The recipe's schedule. UserError for one that does not exist or settings that it does not take."""
    try:
        schedule: Schedule = build(SCHEDULES, spec, {}, "schedule")
    except (ValueError, UserError) as error:
        raise UserError(str(error), key=getattr(error, "key", None) or "schedule") from None
    return schedule


def check_components(config: RunConfig) -> None:
    """UserError for a component that does not exist or a setting it does not have, before anything is trained."""
    schedule = make_schedule(config.schedule.spec)
    try:
        time_grid(schedule, 1, end=config.sampler.end, spacing=config.sampler.spacing)
    except ValueError as error:
        raise UserError(str(error), key="sampler") from None
    config.sampler.chosen()
    known = {**ENERGIES.names(), **OBJECTIVES.names()}
    for name, guidance in config.arms.items():
        key = "guidance" if name == "guided" else f"variants.{name}"
        if guidance.energy.name not in known and ":" not in guidance.energy.name:
            raise UserError(
                f"no energy is called '{guidance.energy.name}'; {nearest(guidance.energy.name, known)}", key=f"{key}.energy"
            )
        registry = OBJECTIVES if is_trained(guidance) else ENERGIES
        validate(registry, guidance.energy.spec, ENERGY_PARTS, f"{key}.energy")
        validate(POSTERIORS, guidance.posterior.spec, POSTERIOR_PARTS, f"{key}.posterior")
        try:
            build(RULES, guidance.rule.spec, {"omega": 1.0}, f"{key}.rule")
        except ValueError as error:
            raise UserError(str(error), key=f"{key}.rule") from None


class AEPO:
    """AEPO (arXiv:2505.01822): behaviour diffusion, implicit Q-learning, intermediate energy. All parts of one run."""

    def __init__(self, config: RunConfig, data: OfflineData, device: torch.device) -> None:
        self.config, self.data, self.device = config, data, device
        state, action = data.transitions.state.shape[1], data.transitions.action.shape[1]
        self.schedule = make_schedule(config.schedule.spec)
        d, c = config.denoiser, config.critic
        noise_model = self._fresh("denoiser", lambda: NoiseMLP(action, state, width=d.width, blocks=d.blocks))
        self.noise_fit = Fit(noise_model, lr=d.lr, steps=d.steps, decay=d.decay, ema=d.ema)
        settings = c.model_dump(exclude={"name", "batch"})
        self.critic = self._fresh("critic", lambda: IQL(state, action, device=device, **settings))
        self.calibration = Calibration(self)
        self.betas = nn.ParameterDict({name: torch.tensor(arm.beta) for name, arm in config.arms.items()}).requires_grad_(False)
        self.energies = {name: self._energy_learner(name, state, action) for name in self._networks().values()}
        times = time_grid(self.schedule, config.sampler.steps, end=config.sampler.end, spacing=config.sampler.spacing)
        self.sampler = Sampler(self.schedule, times.to(device), action, config.sampler.chosen())

    def _fresh(self, name: str, make: Callable[[], Any]) -> Any:
        """Make a network with initial weights that depend on the run's seed and its own name alone."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(self.config.seed, f"init/{name}"))
            made = make()
        return made.to(self.device) if isinstance(made, nn.Module) else made

    # -- parts ---------------------------------------------------------------------------------------------------

    def denoiser(self, clip: bool, straight_through: bool = False) -> Denoiser:
        """The behaviour policy's denoiser, its x_0 within the data's action range if ``clip``."""
        plain = NetworkDenoiser(self.noise_fit.model, self.schedule, self.config.denoiser.prediction)
        return Clip(plain, self.data.action_low, self.data.action_high, straight_through) if clip else plain

    def energy(self, scale: str = "raw") -> Energy:
        """E(a, s) = (V(s) - Q(s, a)) / scale: minus the advantage."""
        unit = self.calibration.advantage_std if scale == "advantage_std" else torch.ones((), device=self.device)
        return MinusAdvantage(self.critic, unit)

    def parts(self, guidance: GuidanceConfig, generator: Randomness) -> dict[str, Any]:
        """What an energy may ask for by name."""
        denoiser = self.denoiser(guidance.clip_x0, guidance.straight_through)
        of_posterior = {"denoiser": denoiser, "schedule": self.schedule, "moments": self.calibration.moments[guidance.clip_x0]}
        return {
            **of_posterior,
            "energy": self.energy(guidance.energy_scale),
            "posterior": build(POSTERIORS, guidance.posterior.spec, of_posterior, "guidance.posterior"),
            "support": BehaviourSupport(self.sampler, denoiser, generator),
            "beta": guidance.beta,
        }

    def timed_energy(self, name: str, generator: Randomness) -> TimedEnergy:
        """The intermediate energy of an arm: its trained network, or its closed form."""
        guidance = self.config.arms[name]
        if is_trained(guidance):
            return at_unit_scale(self.energies[self._networks()[name]].fit.model, self.schedule)
        closed_form: TimedEnergy = build(ENERGIES, guidance.energy.spec, self.parts(guidance, generator), f"{name}.energy")
        return closed_form

    def policy(self, name: str, omegas: Sequence[float], generator: Randomness) -> Callable[[Tensor, Tensor], Tensor]:
        """act(states (n, S), which (n,)) -> (n, A), row i guided at omegas[which[i]]. The behaviour policy for 'behaviour'."""
        guidance = self.config.arms["guided" if name == "behaviour" else name]
        denoiser = self.denoiser(guidance.clip_x0)
        bounds = (self.data.action_low, self.data.action_high) if guidance.clip_x0 else None
        if name == "behaviour":
            behaviour = GuidedPolicy(self.sampler, denoiser, generator, bounds=bounds)
            return lambda states, which: behaviour(states)
        timed, energy = self.timed_energy(name, generator), self.energy(guidance.energy_scale)
        scales = torch.tensor(omegas, device=self.device)
        k = guidance.candidates
        moments = self.calibration.moments[guidance.clip_x0]
        choice = Choice(energy, guidance.beta, k, guidance.selection, residual(denoiser, moments).variance)

        def act(states: Tensor, which: Tensor) -> Tensor:
            rule = build(RULES, guidance.rule.spec, {"omega": scales[which].repeat_interleave(k)}, f"{name}.rule")
            energies = (timed, rule) if max(omegas) > 0 else (None, None)
            return GuidedPolicy(self.sampler, denoiser, generator, energies[0], energies[1], choice, bounds)(states)

        return act

    def modules(self) -> dict[str, nn.Module]:
        """What an energy reads, by the tensors that are not the same in all runs of a recipe."""
        return {
            "noise": self.noise_fit.model,
            "critic": self.critic.values,
            "target": self.critic.target.module,
            "calibration": self.calibration,
            "betas": self.betas,
        }

    # -- training ------------------------------------------------------------------------------------------------

    def phases(self) -> list[Phase]:
        """Phased: each part on its converged predecessor. Joint: all in one loop, as Algorithm 1 is written."""
        d, c, e = self.config.denoiser, self.config.critic, self.config.energy_network
        denoiser = DenoiserLearner(self.noise_fit, self.schedule, self._actions, batch=d.batch, prediction=d.prediction)
        critic = CriticLearner(self.critic, self.data, batch=c.batch)
        for learner in (denoiser, critic, *self.energies.values()):
            learner.computing = self.config.computing
        if self.config.training == "joint":
            joint = Joint(denoiser, critic, self.calibration, self.energies, self.config)
            return [Phase("joint", max(d.steps, c.steps, e.steps if self.energies else 0), joint)]
        energies = [Phase(f"energy_{name}", e.steps, learner) for name, learner in self.energies.items()]
        return [
            Phase("denoiser", d.steps, denoiser),
            Phase("critic", c.steps, critic),
            Phase("calibration", 1, self.calibration),
            *energies,
        ]

    def _actions(self, n: int, generator: torch.Generator) -> tuple[Tensor, Context]:
        batch = self.data.sample(n, generator)
        return batch.action, batch.state

    def _networks(self) -> dict[str, str]:
        """Arm -> the arm whose network it uses: arms that differ only in rule or omega share one."""
        owners: dict[str, str] = {}
        seen: dict[str, str] = {}
        for name, guidance in self.config.arms.items():
            if is_trained(guidance):
                shared = {"energy", "beta", "posterior", "clip_x0", "straight_through", "energy_scale"}
                what = guidance.model_dump_json(include=shared)
                owners[name] = seen.setdefault(what, name)
        return owners

    def _energy_learner(self, name: str, state: int, action: int) -> EnergyLearner:
        e = self.config.energy_network
        make = lambda: EnergyMLP(action, state, width=e.width, layers=e.layers, activation=e.activation)  # noqa: E731
        fit = Fit(self._fresh(f"energy/{name}", make), lr=e.lr, steps=e.steps, decay=e.decay)
        objective = LateObjective(self, name)
        return EnergyLearner(fit, self.schedule, self._actions, objective, batch=e.batch)


class LateObjective:
    """An objective built at its first use after a calibration: it needs the variances that the calibration finds. Support
    samples are drawn from the generator of the running update, which a killed run restores.
    """

    def __init__(self, agent: AEPO, name: str) -> None:
        self.agent, self.name, self.guidance = agent, name, agent.config.arms[name]
        guidance = self.guidance
        self._built: tuple[int, torch.Generator, Any] | None = None
        component = OBJECTIVES.find(guidance.energy.name, "guidance.energy")
        self.dimensionless: bool = getattr(component, "dimensionless", False)
        if hasattr(component, "targets"):
            self.targets = self._targets

    def modules(self) -> dict[str, nn.Module]:
        """What the energy, the posterior and the denoiser read."""
        return self.agent.modules()

    def _objective(self, generator: torch.Generator) -> Any:
        if batched.inside():  # made of the tensors of all runs: for this call alone
            return self._make(generator, beta=self.agent.betas[self.name])
        version = self.agent.calibration.version
        if self._built is None or self._built[0] != version or self._built[1] is not generator:
            self._built = version, generator, self._make(generator)
        return self._built[2]

    def _make(self, generator: torch.Generator, **instead: Any) -> Any:
        parts = self.agent.parts(self.guidance, generator) | instead
        return build(OBJECTIVES, self.guidance.energy.spec, parts, "guidance.energy")

    def _targets(self, x0: Tensor, x: Tensor, t: Tensor, c: Context) -> Tensor:
        """Of the objective, with random numbers that are the same at every call."""
        targets: Tensor = self._objective(torch.Generator(self.agent.device)).targets(x0, x, t, c)
        return targets

    def loss(
        self, network: TimedEnergy, x0: Tensor, x: Tensor, t: Tensor, c: Context, generator: torch.Generator
    ) -> tuple[Tensor, Metrics]:
        """Of the objective."""
        loss: tuple[Tensor, Metrics] = self._objective(generator).loss(network, x0, x, t, c, generator)
        return loss


class Calibration(nn.Module):
    """Posterior variances over t, with and without clipping of x_0, and the spread of the advantages, from a pass over
    the data: buffers, so that those of many runs can be stacked.
    """

    advantage_std: Tensor

    def __init__(self, agent: AEPO) -> None:
        super().__init__()
        self._agent = (agent,)  # in a tuple, as it is no part of this module
        self.register_buffer("advantage_std", torch.ones((), device=agent.device))
        self.clips = nn.ModuleDict()
        self.version = 0

    @property
    def moments(self) -> dict[bool, Moments]:
        """Of the denoiser with x_0 clipped (True) and not."""
        return {name == "clip1": Moments.load(_named(module)) for name, module in self.clips.items()}

    @torch.no_grad()
    def update(self, generator: torch.Generator) -> Metrics:
        """Estimate everything anew."""
        (agent,) = self._agent
        settings = agent.config.calibration
        for clip in (False, True):
            moments = calibrate(
                agent.denoiser(clip),
                agent.schedule,
                agent._actions,
                generator=generator,
                grid=settings.grid,
                samples=settings.samples,
            )
            self._keep(f"clip{int(clip)}", moments.state())
        batch = agent.data.sample(settings.samples, generator)
        advantage = agent.critic.q(batch.state, batch.action) - agent.critic.v(batch.state)
        self.advantage_std = advantage.std().clamp(min=1e-6)
        self.version += 1
        return {"advantage_std": self.advantage_std}

    def _keep(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        self.clips[name] = nn.Module()
        for key, tensor in tensors.items():
            self.clips[name].register_buffer(key.replace(".", "/"), tensor)

    def state(self) -> dict[str, Tensor]:
        """For the checkpoint."""
        moments = {k: v for name, module in self.clips.items() for k, v in prefixed(name, _named(module)).items()}
        return {**moments, "advantage_std": self.advantage_std}

    def load(self, state: dict[str, Tensor]) -> None:
        """The inverse of ``state``."""
        for name in ("clip0", "clip1"):
            if moments := group(name, state):
                self._keep(name, moments)
        self.advantage_std = state["advantage_std"]
        self.version += 1


def _named(module: nn.Module) -> dict[str, Tensor]:
    """Buffers whose names may have dots."""
    return {name.replace("/", "."): tensor for name, tensor in module.named_buffers()}


class Joint:
    """Algorithm 1 as one loop: every part takes one step an iteration, as long as it has steps left."""

    def __init__(
        self,
        denoiser: Learner,
        critic: Learner,
        calibration: Calibration,
        energies: dict[str, EnergyLearner],
        config: RunConfig,
    ) -> None:
        self.calibration, self.every = calibration, config.calibration.every
        self.learners: dict[str, Learner] = {"denoiser": denoiser, "critic": critic}
        self.learners |= {f"energy_{name}": learner for name, learner in energies.items()}
        self.limits = {"denoiser": config.denoiser.steps, "critic": config.critic.steps}
        self.total = max(*self.limits.values(), config.energy_network.steps if energies else 0)
        self.step = 0

    def update(self, generator: torch.Generator) -> Metrics:
        """One iteration; the variances are estimated again every ``calibration.every`` of them, and after the last."""
        metrics: Metrics = {}
        for name, learner in self.learners.items():
            if self.step < self.limits.get(name, self.total):
                metrics |= {f"{name}/{key}": value for key, value in learner.update(generator).items()}
            if name == "critic" and self.step % self.every == 0:  # the parts before the energies
                self.calibration.update(generator)
        self.step += 1
        if self.step == self.total:
            self.calibration.update(generator)
        return metrics

    def state(self) -> dict[str, Tensor]:
        """Of all parts."""
        parts = {k: v for name, learner in self.learners.items() for k, v in prefixed(name, learner.state()).items()}
        return {**parts, **prefixed("calibration", self.calibration.state()), "step": torch.tensor(self.step)}

    def load(self, state: dict[str, Tensor]) -> None:
        """The inverse of ``state``."""
        for name, learner in self.learners.items():
            learner.load(group(name, state))
        self.calibration.load(group("calibration", state))
        self.step = int(state["step"])
