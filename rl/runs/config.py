"""The recipe of an offline run, typed. The defaults are the library's; what a paper states is in its recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    Field,
    field_validator,
    model_validator,
)

from egd.bounds import (
    Batch,
    Beta,
    Candidates,
    Decay,
    Environments,
    Episodes,
    Every,
    Layers,
    Members,
    Number,
    Omega,
    PositiveShare,
    ProperShare,
    Rate,
    Seed,
    Steps,
    Temperature,
    Width,
    Workers,
)
from egd.config.base import ComponentConfig, Strict
from egd.config.sections import (
    CalibrationConfig,
    ChosenConfig,
    DenoiserConfig,
    EnergyNetworkConfig,
    NetworkConfig,
    RunSettings,
    SamplerConfig,
)
from egd.networks.mlp import ActivationName
from egd.training.precision import Computing, Precision
from rl.data.transitions import RewardScale
from rl.tasks import RewardTransform, Task, find_task


@dataclass(frozen=True)
class Varies:
    """Marks a setting in which runs may differ that are trained together: a tensor holds it, or it matters after training."""


VARIES = Varies()


def varying(config: BaseModel) -> dict[str, Any]:
    """Name the settings of a recipe that are so marked, as pydantic's ``exclude`` has it."""
    found: dict[str, Any] = {}
    kinds = [kind for kind in type(config).__mro__ if issubclass(kind, BaseModel)]  # a subclass may give a new default alone
    for name in type(config).model_fields:
        value = getattr(config, name)
        if any(name in kind.model_fields and VARIES in kind.model_fields[name].metadata for kind in kinds):
            found[name] = True
        elif isinstance(value, BaseModel) and (within := varying(value)):
            found[name] = within
    return found


class DataConfig(Strict):
    """Where the transitions come from and how they are transformed."""

    datasets: tuple[str, ...] = ()
    """Minari ids, concatenated; empty: those of the task."""
    download: bool = True
    generator: ComponentConfig | None = None
    """Makes the (one) dataset when it is not there; see ``rl.data.generators``."""
    reward_scale: RewardScale | Literal["task"] = "task"
    """A factor; ``range``, 1000 / (largest - smallest return); or ``task``, that of the task's family."""
    reward_shift: Number | Literal["task"] = "task"
    """Added to the reward first (antmaze: -1); ``task``, that of the task's family."""
    standardise_states: bool = True

    def rewards(self, task: Task) -> RewardTransform:
        """Of a task."""
        scale = task.reward.scale if self.reward_scale == "task" else self.reward_scale
        return RewardTransform(scale, task.reward.shift if self.reward_shift == "task" else self.reward_shift)


class CriticConfig(ChosenConfig):
    """Q and V, on the same networks whatever they are regressed on; a critic's own settings, as ISQL's ``beta``, stand beside
    these.
    """

    name: str = "iql"
    """A critic of ``rl.critics`` (``egd list``), or ``path.to.module:Name``."""
    expectile: Annotated[ProperShare, VARIES] = 0.7
    """tau of IQL (AEPO Eq. 27)."""
    gamma: Decay = 0.99
    polyak: PositiveShare = 0.005
    width: Width = 256
    layers: Layers = 3
    activation: ActivationName = "silu"
    layer_norm: bool = True
    ensemble: Members = 2
    steps: Steps = 1_000_000
    batch: Batch = 256
    lr: Rate = 3e-4
    decay: bool = False


class ActorConfig(NetworkConfig):
    """A policy that is one network, without diffusion."""

    name: Literal["deterministic", "gaussian"] = "deterministic"
    """tanh of a network; or a Gaussian around it, with one standard deviation for all states. Its mean acts."""
    activation: ActivationName = "relu"
    layer_norm: bool = False


class AdvantageCalibrationConfig(CalibrationConfig):
    """Posterior variances and the spread of the advantages; ``every`` so many steps anew, in joint training only."""

    every: Every = 1000


Selection = Literal["best", "softmax", "smc"]


class GuidanceConfig(Strict):
    """From critic to guided actions."""

    energy: ComponentConfig = ComponentConfig(name="support_samples")
    """A closed form (``egd list``), or an objective that trains a network."""
    rule: ComponentConfig = ComponentConfig(name="additive")
    beta: Beta = 3.0
    omega: Omega = 1.0
    omegas: tuple[Omega, ...] = Field(default=(), max_length=1000)
    """Further guidance scales to evaluate beside it, in the same batched pass."""
    posterior: ComponentConfig = ComponentConfig(name="residual")
    """Of the energies that name none of their own."""
    clip_x0: bool = True
    """Keep the denoiser's x_0 within the range of the data's actions."""
    straight_through: bool = False
    """Energies that look through the denoiser see the derivatives of the unclipped x_0."""
    energy_scale: Literal["raw", "advantage_std"] = "raw"
    """E = V - Q in the critic's units, or divided by the data's spread of Q - V so that beta means the same on every task."""
    candidates: Candidates = 1
    """Draw that many actions for every state and keep one."""
    selection: Selection = "best"
    """Of the candidates: that of lowest energy; by softmax(-beta E); or by sequential Monte Carlo along the sampler, which
    corrects whatever the intermediate energy gets wrong."""
    temperature: Temperature = 1.0
    """Standard deviation of the sampler's initial noise in units of the schedule's: below 1 actions gather where the density
    is high, at 0 they are a function of the state. Low-temperature sampling of Decision Diffuser (arXiv:2211.15657)."""

    @model_validator(mode="after")
    def _particles_are_exact(self) -> GuidanceConfig:
        if self.selection == "smc" and self.temperature != 1:
            raise ValueError(f"selection 'smc' weighs samples of the prior: temperature {self.temperature:g} must be 1")
        return self

    def alters(self, omega: float) -> bool:
        """Whether it is, at that scale, another policy than the behaviour policy."""
        return omega > 0 or self.candidates > 1 or self.temperature != 1


class EvaluationConfig(Strict):
    """Rollouts in the task's environment."""

    episodes: Annotated[Episodes, VARIES] = 30
    every: Steps = 0
    """Also evaluate every so many steps of the last phase (0: at the end only)."""
    envs: Annotated[Environments, VARIES] = 30
    """Environments a guidance scale runs at a time."""
    max_steps: Every | None = None
    """Steps after which an episode ends; none: those of the task, or of an environment that has a limit of its own."""
    workers: Workers = 0
    """Processes that step the environments while actions are sampled; 0: the main process, in between. Changes no result."""


class SupportConfig(Strict):
    """Actions of the behaviour policy, drawn once for every state of the data, for what learns from them."""

    actions: Candidates = 16
    """K for each state."""
    clip_x0: bool = False
    """Keep the denoiser's x_0 within the range of the data's actions."""


class RunConfig(RunSettings):
    """What every run of offline RL has, whatever the agent."""

    agent: str = "aepo"
    """One of ``rl.agents``, or ``path/to/file.py:Name``."""
    method: str = ""
    """What a table calls it: the name under ``methods``, or else its agent."""
    seed: Annotated[Seed, VARIES] = 0
    precision: Precision = "float32"
    """Of matrix products in training; ``bf16`` is twice as fast on CPUs and GPUs that have it."""
    compile: bool = False
    """Compile every loss (torch.compile): seconds at the start of each phase, faster steps."""
    data: DataConfig = DataConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    @model_validator(mode="before")
    @classmethod
    def _filled(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        method = value.get("method") or value.get("agent") or cls.model_fields["agent"].default
        return {**cls.completed(value), "method": method}

    def found_task(self) -> Task:
        """Its task, with the time limit that the recipe gives it."""
        task = find_task(self.task)
        return task if self.evaluation.max_steps is None else replace(task, max_steps=self.evaluation.max_steps)

    @property
    def computing(self) -> Computing:
        """``precision`` and ``compile``."""
        return Computing(self.precision, self.compile)


class DiffusionConfig(RunConfig):
    """A run with a diffusion model of the behaviour policy."""

    schedule: ComponentConfig = ComponentConfig(name="vp_linear")
    denoiser: DenoiserConfig = DenoiserConfig()
    sampler: SamplerConfig = SamplerConfig()


class ValuedConfig(DiffusionConfig):
    """A run with a behaviour policy and a critic."""

    critic: CriticConfig = CriticConfig()
    support: SupportConfig = SupportConfig()
    calibration: AdvantageCalibrationConfig = AdvantageCalibrationConfig()


class GuidedConfig(ValuedConfig):
    """A behaviour policy, a critic, and guidance by the one of samples of the other, in one way or in several."""

    training: Literal["phased", "joint"] = "phased"
    energy_network: EnergyNetworkConfig = EnergyNetworkConfig()
    guidance: Annotated[GuidanceConfig, VARIES] = GuidanceConfig()
    variants: Annotated[dict[str, GuidanceConfig], VARIES] = Field(default_factory=dict, max_length=1000)

    @field_validator("variants")
    @classmethod
    def _not_reserved(cls, value: dict[str, Any]) -> dict[str, Any]:
        if taken := {"behaviour", "guided"} & set(value):
            raise ValueError(f"a variant cannot be called {taken.pop()}: that is a name of its own in the results")
        return value

    @property
    def guidances(self) -> dict[str, GuidanceConfig]:
        """The headline guidance under the name ``guided``, and the variants."""
        return {"guided": self.guidance, **self.variants}

    @property
    def energy_steps(self) -> int:
        """The steps of every energy network: in joint training they go on as long as anything does."""
        own = self.energy_network.steps
        return max(self.denoiser.steps, self.critic.steps, own) if self.training == "joint" else own
