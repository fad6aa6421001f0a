"""A behaviour diffusion, a critic, and intermediate energies made of both: what AEPO, QGPO and selection have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from egd.config.catalogue import ENERGIES, POSTERIORS, RULES
from egd.config.components import build
from egd.config.trial import Trial
from egd.denoisers import at_unit_scale
from egd.errors import UserError
from egd.networks.mlp import EnergyMLP, EnergyNetwork
from egd.posteriors import residual
from egd.runs.labels import label
from egd.runs.phases import Phase
from egd.runs.safe_names import module_name
from egd.training.learners import EnergyLearner, Fit
from egd.types import Context, TimedEnergy
from rl.agents.base import Act
from rl.agents.valued import ValuedAgent
from rl.critics.choice import needs_support
from rl.data.transitions import OfflineData
from rl.evaluation import diagnostics
from rl.parts.guidance import check_guidance, component_parts, group_size, is_trained
from rl.parts.guided_policy import BehaviourSupport, Choice, GuidedPolicy, Randomness
from rl.parts.joint import Joint
from rl.parts.objective import LateObjective
from rl.runs.config import GuidanceConfig, GuidedConfig
from rl.tasks import Task


class GuidedAgent(ValuedAgent):
    """pi(a|s) ~ mu(a|s) exp(beta Q(s, a)) (AEPO Eq. 4) by guidance of a diffusion model of mu."""

    Config: ClassVar[type[GuidedConfig]] = GuidedConfig
    config: GuidedConfig

    def __init__(self, config: GuidedConfig, data: OfflineData, device: torch.device) -> None:
        super().__init__(config, data, device)
        betas = {_of(name): torch.tensor(arm.beta) for name, arm in config.guidances.items()}
        self._try_components()
        self.betas = nn.ParameterDict(betas).requires_grad_(False)
        self.energies = {name: self._energy_learner(name) for name in self._networks().values()}

    @classmethod
    def check(cls, config: Any) -> None:
        """UserError for a component that does not exist or a setting it does not have, and where all is trained at once for
        one that learns from support actions, which only a finished behaviour policy draws.
        """
        super().check(config)
        check_guidance(config.guidances)
        supported = [name for name, arm in config.guidances.items() if group_size(arm)]
        if config.training == "joint" and (supported or needs_support(config.critic)):
            what = f"the energy of '{supported[0]}'" if supported else f"the critic '{config.critic.name}'"
            raise UserError(f"'joint' draws no support actions, which {what} learns from; use 'phased'", key="training")

    @classmethod
    def batch_key(cls, config: Any) -> Mapping[str, Any]:
        """All but the seed, the expectile, the value of beta, and what comes after training."""
        betas = list(dict.fromkeys(arm.beta for arm in config.guidances.values()))
        trained = {name: _trained(arm, betas) for name, arm in config.guidances.items()}
        rest = {key: value for key, value in super().batch_key(config).items() if key not in ("guidance", "variants")}
        return {**rest, "arms": trained}

    def _try_components(self) -> None:
        """Try components of the user's own on a few rows of made-up data. UserError for one that breaks its contract."""
        trial = Trial((self.actions,), self.schedule, torch.zeros(2, self.states))
        for name, guidance in self.config.guidances.items():
            key = "guidance" if name == "guided" else f"variants.{name}"
            trial.energy(guidance.energy.spec, f"{key}.energy")
            trial.posterior(guidance.posterior.spec, f"{key}.posterior")
            trial.rule(guidance.rule.spec, f"{key}.rule")

    # -- parts ---------------------------------------------------------------------------------------------------

    def support_actions(self) -> int:
        """The most that the critic or an objective takes."""
        groups = [group_size(arm) for arm in self.config.guidances.values()]
        return max(self.config.support.actions, *groups) if any(groups) else super().support_actions()

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
        guidance = self.config.guidances[name]
        if is_trained(guidance):
            return at_unit_scale(self.energies[self._networks()[name]].fit.model, self.schedule)
        closed_form: TimedEnergy = build(ENERGIES, guidance.energy.spec, self.parts(guidance, generator), f"{name}.energy")
        return closed_form

    # -- acting --------------------------------------------------------------------------------------------------

    def policies(self) -> dict[str, float | None]:
        """Behaviour, ``guided`` and the variants."""
        return {"behaviour": None, **{name: arm.omega for name, arm in self.config.guidances.items()}}

    def scales(self, only: Sequence[float] | None = None) -> dict[str, list[float]]:
        """Behaviour, and every arm at its own guidance scale and its further ones, or at ``only`` these. Without 0: that is the
        behaviour policy, unless the arm also selects among candidates or has a temperature.
        """

        def wanted(g: GuidanceConfig) -> list[float]:
            omegas = [g.omega, *g.omegas] if only is None else only
            return list(dict.fromkeys(omega for omega in omegas if g.alters(omega)))

        return {"behaviour": [], **{name: found for name, g in self.config.guidances.items() if (found := wanted(g))}}

    @property
    def headline(self) -> str:
        """The arm ``guided`` at its own scale."""
        return self.own("guided")

    def own(self, arm: str) -> str:
        """The policy that an arm is at its own guidance scale."""
        guidance = self.config.guidances[arm]
        return f"{arm}@{label(guidance.omega)}" if guidance.alters(guidance.omega) else "behaviour"

    def policy(self, name: str, scales: Sequence[float], randomness: Randomness) -> Act:
        """An arm at these guidance scales, or ``behaviour``."""
        guidance = self.config.guidances["guided" if name == "behaviour" else name]
        denoiser, bounds = self.denoiser(guidance.clip_x0), self.bounds(guidance.clip_x0)
        if name == "behaviour":
            return self.unguided(denoiser, randomness, clip=guidance.clip_x0)
        timed, energy = self.timed_energy(name, randomness), self.energy(guidance.energy_scale)
        omegas = torch.tensor(scales, device=self.device)
        k = guidance.candidates
        moments = self.calibration.moments[guidance.clip_x0]
        variance = residual(denoiser, moments, schedule=self.schedule).variance
        choice = Choice(energy, guidance.beta, k, guidance.selection, variance)
        plain = GuidedPolicy(self.sampler, denoiser, randomness, choice=choice, bounds=bounds, temperature=guidance.temperature)

        def act(states: Tensor, which: Tensor) -> Tensor:
            rule = build(RULES, guidance.rule.spec, {"omega": omegas[which].repeat_interleave(k)}, f"{name}.rule")
            return plain(states) if max(scales) == 0 else replace(plain, timed_energy=timed, rule=rule)(states)

        return act

    def beta(self, arm: str) -> Tensor:
        """The inverse temperature of an arm, ()."""
        beta: Tensor = self.betas[_of(arm)]
        return beta

    def loss_networks(self) -> dict[str, nn.Module]:
        """What an energy reads, by the tensors that are not the same in all runs of a recipe."""
        return {**super().loss_networks(), "betas": self.betas}

    def modules(self) -> dict[str, nn.Module]:
        """The same and the energy networks."""
        return {
            **self.loss_networks(),
            **{f"energy_{module_name(name)}": learner.fit.model for name, learner in self.energies.items()},
        }

    # -- training ------------------------------------------------------------------------------------------------

    def phases(self) -> list[Phase]:
        """Phased: each part on its converged predecessor. Joint: all in one loop, as AEPO's Algorithm 1 is written."""
        phased = super().phases()
        phased += [self._energy_phase(name, learner, phased) for name, learner in self.energies.items()]
        return [self._joint(phased)] if self.config.training == "joint" else phased

    def _joint(self, phased: Sequence[Phase]) -> Phase:
        before = {phase.name: phase for phase in phased if phase.name in ("denoiser", "critic")}
        limits = {name: phase.steps for name, phase in before.items()}
        total = self._energy_steps() if self.energies else max(limits.values())
        learners = {name: phase.learner for name, phase in before.items()}
        joint = Joint(learners, limits, self.calibration, self.energies, total, self.config.calibration.every)
        return self.phase("joint", total, joint, {}, after=phased)  # made of the same

    def _energy_steps(self) -> int:
        """Of every energy network: in joint training they go on as long as anything does."""
        c = self.config
        return (
            max(c.denoiser.steps, c.critic.steps, c.energy_network.steps) if c.training == "joint" else c.energy_network.steps
        )

    def evaluation_phase(self, phases: Sequence[Phase]) -> Phase:
        """The energy network of ``guided``; the critic where its energy is a closed form; the denoiser where nothing guides."""
        guided = f"energy_{self._networks()['guided']}" if is_trained(self.config.guidance) else "critic"
        wanted = {"joint", "denoiser" if self.headline == "behaviour" else guided}
        return next(phase for phase in phases if phase.name in wanted)

    def _energy_phase(self, name: str, learner: EnergyLearner, phased: Sequence[Phase]) -> Phase:
        arm = self.config.guidances[name]
        network = self.config.energy_network.model_dump(mode="json")
        settings = {"network": network, **arm.model_dump(mode="json", include=OF_NETWORK)}
        if "support" in component_parts(arm):  # drawn at every step
            settings |= self.config.model_dump(mode="json", include={"sampler"})
        wanted = {"calibration", "support"} if group_size(arm) else {"calibration"}
        after = [phase for phase in phased if phase.name in wanted]
        return self.phase(f"energy_{name}", self._energy_steps(), learner, settings, after=after)

    def _networks(self) -> dict[str, str]:
        """Arm -> the arm whose network it uses: arms that differ only in rule or omega share one."""
        owners: dict[str, str] = {}
        seen: dict[str, str] = {}
        for name, guidance in self.config.guidances.items():
            if is_trained(guidance):
                owners[name] = seen.setdefault(guidance.model_dump_json(include=OF_NETWORK), name)
        return owners

    def _energy_learner(self, name: str) -> EnergyLearner:
        e, k = self.config.energy_network, group_size(self.config.guidances[name])
        fit = Fit(self.fresh(f"energy/{name}", self.energy_model), lr=e.lr, steps=self._energy_steps(), decay=e.decay)
        sample = partial(self.grouped, k) if k else self.behaviour.sample
        return EnergyLearner(fit, self.schedule, sample, LateObjective(self, name), batch=e.batch)

    def energy_model(self) -> EnergyNetwork:
        """A fresh one, of the recipe's ``energy_network``."""
        e = self.config.energy_network
        return EnergyMLP(self.actions, self.states, width=e.width, layers=e.layers, activation=e.activation)

    def grouped(self, k: int, n: int, generator: torch.Generator) -> tuple[Tensor, Context]:
        """K stored actions in each of n / K states, those of a state side by side."""
        assert self.support is not None
        index = self.data.index(max(1, n // k), generator)
        return self.support.of(index)[:, :k].flatten(0, 1), self.data.transitions.state[index].repeat_interleave(k, 0)

    # -- for people ----------------------------------------------------------------------------------------------

    def diagnostics(self, generator: torch.Generator) -> dict[str, Any]:
        """See docs/diagnostics.md."""
        return diagnostics.diagnose(self, generator)

    def warnings(self, diagnostics: Mapping[str, Any]) -> list[str]:
        """A clamp that acts is reported, for the posteriors that an arm uses."""
        found = []
        for name, arm in self.config.guidances.items():
            kind = ("clipped_" if arm.clip_x0 else "") + arm.posterior.name  # Tweedie's is not clamped over t
            share = diagnostics["posterior_clamped_share"].get(kind, 0.0)
            if share and "posterior" in component_parts(arm):
                found.append(
                    f"{name}: its {arm.posterior.name} variance was clamped at {100 * share:.0f} % of the times; "
                    "see posterior_variance.png and docs/diagnostics.md"
                )
        return found

    def save_figures(self, folder: Path, title: str, task: Task, rollouts: Any) -> None:
        """Posterior variances, scores over omega, paths through a maze."""
        from rl.evaluation import figures  # matplotlib is not needed to act

        figures.draw(self, folder, title, task, rollouts)


OF_NETWORK = {"energy", "beta", "posterior", "clip_x0", "straight_through", "energy_scale"}
"""What of an arm decides its network."""


def _of(arm: str) -> str:
    """A name for a tensor, whatever the arm is called: a dictionary of PyTorch's has no room for "keys"."""
    return f"of_{module_name(arm)}"


def _trained(arm: GuidanceConfig, betas: list[float]) -> Any:
    """What of an arm decides training. Arms of one beta may share a network: which do is the same in runs that are alike."""
    if not is_trained(arm):
        return None
    return {**arm.model_dump(mode="json", include=OF_NETWORK - {"beta"}), "beta": betas.index(arm.beta)}
