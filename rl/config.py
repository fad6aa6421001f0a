"""Typed recipe of an offline run. The defaults are the library's; a paper's settings are in its recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal, Protocol, runtime_checkable

from pydantic import (
    Field,
    field_validator,
    model_validator,
)
from typing_extensions import override

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
from egd.config.base import EXECUTION, ComponentConfig, Mark, Strict
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

VARIES = Mark("may differ between runs trained together: it is held in a tensor, or only matters after training")


class DataConfig(Strict):
    """Source of the transitions, and their transformation."""

    datasets: tuple[str, ...] = ()
    """Minari ids, concatenated; if empty, those of the task."""
    download: bool = True
    generator: ComponentConfig | None = None
    """Generator that makes the (one) dataset if it is missing; see ``rl.data.generators``."""
    reward_scale: RewardScale | Literal["task"] = "task"
    """Factor of the reward: a number; ``range``, 1000 / (largest - smallest return); or ``task``, that of the task's family."""
    reward_shift: Number | Literal["task"] = "task"
    """Number added to the reward before scaling (antmaze: -1); or ``task``, that of the task's family."""
    standardise_states: bool = True

    def rewards(self, task: Task) -> RewardTransform:
        """Return the reward transform for a task."""
        scale = task.reward.scale if self.reward_scale == "task" else self.reward_scale
        return RewardTransform(scale, task.reward.shift if self.reward_shift == "task" else self.reward_shift)


class CriticConfig(ChosenConfig):
    """Settings of Q and V, whose networks are the same for every critic; a critic's own settings, as ISQL's ``beta``, stand
    beside them.
    """

    name: str = "iql"
    """Critic of ``rl.critics`` (``egd list``), or ``path.to.module:Name``."""
    expectile: Annotated[ProperShare, VARIES] = 0.7
    """Expectile tau of IQL (AEPO Eq. 27)."""
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
    """Settings of a policy that is one network, without diffusion."""

    name: Literal["deterministic", "gaussian"] = "deterministic"
    """Tanh of a network; or a Gaussian around it, with one standard deviation for all states, whose mean acts."""
    activation: ActivationName = "relu"
    layer_norm: bool = False


class AdvantageCalibrationConfig(CalibrationConfig):
    """Settings of the estimates of posterior variances and of the advantages' spread; ``every`` is their period in steps, in
    joint training only.
    """

    every: Every = 1000


Selection = Literal["best", "softmax", "smc"]


class GuidanceConfig(Strict):
    """Settings of guidance, from critic to guided actions."""

    energy: ComponentConfig = ComponentConfig(name="support_samples")
    """Intermediate energy: a closed form (``egd list``), or an objective that trains a network."""
    rule: ComponentConfig = ComponentConfig(name="additive")
    beta: Beta = 3.0
    omega: Omega = 1.0
    omegas: tuple[Omega, ...] = Field(default=(), max_length=1000)
    """Further guidance scales, evaluated beside ``omega`` in the same batched pass."""
    posterior: ComponentConfig = ComponentConfig(name="residual")
    """Posterior of the energies that name none of their own."""
    clip_x0: bool = True
    """Keep the denoiser's x_0 within the range of the data's actions."""
    straight_through: bool = False
    """Differentiate energies through the denoiser as if x_0 were not clipped."""
    energy_scale: Literal["raw", "advantage_std"] = "raw"
    """Unit of E = V - Q: the critic's, or the data's spread of Q - V, so that beta means the same on every task."""
    candidates: Candidates = 1
    """Number of actions drawn for every state, of which one is kept."""
    selection: Selection = "best"
    """Choice among the candidates: the lowest energy; by softmax(-beta E); or by sequential Monte Carlo along the sampler,
    which corrects errors of the intermediate energy."""
    temperature: Temperature = 1.0
    """Standard deviation of the sampler's initial noise in units of the schedule's: below 1 actions concentrate where the
    density is high, at 0 they are a function of the state. Low-temperature sampling of Decision Diffuser (arXiv:2211.15657)."""

    @model_validator(mode="after")
    def _particles_are_exact(self) -> GuidanceConfig:
        if self.selection == "smc" and self.temperature != 1:
            raise ValueError(f"selection 'smc' weighs samples of the prior: temperature {self.temperature:g} must be 1")
        return self

    def alters(self, omega: float) -> bool:
        """Return whether the guided policy at that scale differs from the behaviour policy."""
        return omega > 0 or self.candidates > 1 or self.temperature != 1


class EvaluationConfig(Strict):
    """Settings of rollouts in the task's environment."""

    episodes: Annotated[Episodes, VARIES] = 30
    every: Steps = 0
    """Period, in steps of the last phase, of further evaluations (0: at the end only)."""
    envs: Annotated[Environments, VARIES] = 30
    """Number of environments that run at a time, per guidance scale."""
    max_steps: Every | None = None
    """Steps after which an episode ends; by default the limit of the task, or the environment's own."""
    workers: Annotated[Workers, EXECUTION] = 0
    """Processes that step the environments while actions are sampled; 0: the main process, in turn. Changes no result."""


class SupportConfig(Strict):
    """Settings of support actions: actions of the behaviour policy, drawn once for every state of the data, to learn from."""

    actions: Candidates = 16
    """Number K of actions for each state."""
    clip_x0: bool = False
    """Keep the denoiser's x_0 within the range of the data's actions."""


class Tempered(Protocol):
    """Settings of a policy with an inverse temperature."""

    @property
    def beta(self) -> float:
        """Inverse temperature."""
        ...

    @property
    def energy_scale(self) -> Literal["raw", "advantage_std"]:
        """Unit of Q that beta refers to: the critic's, or the data's spread of Q - V."""
        ...


class RunConfig(RunSettings):
    """Settings of every run of offline RL, whatever the agent."""

    agent: str = "aepo"
    """Agent of ``rl.agents``, or ``path/to/file.py:Name``."""
    method: str = ""
    """Name of the method in tables: the one under ``methods``, or else the agent's."""
    seed: Annotated[Seed, VARIES] = 0
    precision: Precision = "float32"
    """Precision of matrix products in training; ``bf16`` is twice as fast on CPUs and GPUs that have it."""
    compile: Annotated[bool, EXECUTION] = False
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
        """Return the task, with the time limit that the recipe gives it."""
        task = find_task(self.task)
        return task if self.evaluation.max_steps is None else replace(task, max_steps=self.evaluation.max_steps)

    @property
    def tempered(self) -> Mapping[str, Tempered]:
        """Settings of the policies with an inverse temperature, by name."""
        return {}

    @property
    def computing(self) -> Computing:
        """Precision and compilation of training: ``precision`` and ``compile``."""
        return Computing(self.precision, self.compile)


class DiffusionConfig(RunConfig):
    """Settings of a run with a diffusion model of the behaviour policy."""

    schedule: ComponentConfig = ComponentConfig(name="vp_linear")
    denoiser: DenoiserConfig = DenoiserConfig()
    sampler: SamplerConfig = SamplerConfig()


@runtime_checkable
class HasCriticConfig(Protocol):
    """Settings of a run with a critic."""

    critic: CriticConfig


class ValuedConfig(DiffusionConfig):
    """Settings of a run with a behaviour policy and a critic."""

    critic: CriticConfig = CriticConfig()
    support: SupportConfig = SupportConfig()
    calibration: AdvantageCalibrationConfig = AdvantageCalibrationConfig()


class GuidedConfig(ValuedConfig):
    """Settings of a run that guides samples of a behaviour policy by a critic, in one way or in several."""

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
        """Headline guidance, under the name ``guided``, and the variants."""
        return {"guided": self.guidance, **self.variants}

    @property
    @override
    def tempered(self) -> Mapping[str, Tempered]:
        return self.guidances

    @property
    def energy_steps(self) -> int:
        """Steps of every energy network: in joint training, the largest number of steps of any network."""
        own = self.energy_network.steps
        return max(self.denoiser.steps, self.critic.steps, own) if self.training == "joint" else own
