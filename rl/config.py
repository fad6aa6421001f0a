"""The recipe of an offline run, typed. The defaults are the library's; what a paper states is in its recipe."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, field_validator

from egd.components import Spec
from egd.computing import Computing, Precision
from egd.config import ComponentConfig, Strict
from egd.denoisers import Prediction
from egd.networks import ActivationName
from egd.samplers import choose
from egd.schedules import Spacing
from egd.types import Sampler
from rl.data import RewardScale


class DataConfig(Strict):
    """Where the transitions come from and how they are transformed."""

    datasets: tuple[str, ...] = ()
    """Minari ids, concatenated; empty: those of the task."""
    download: bool = True
    generator: ComponentConfig | None = None
    """Makes the (one) dataset when it is not there; see ``rl.generators``."""
    reward_scale: RewardScale = 1.0
    """A factor, or ``range``: 1000 / (largest - smallest return)."""
    reward_shift: float = 0.0
    """Added to the reward first (antmaze: -1)."""
    standardise_states: bool = True


class DenoiserConfig(Strict):
    """The network of the behaviour policy (AEPO Algorithm 1)."""

    prediction: Prediction = "epsilon"
    width: PositiveInt = 256
    blocks: PositiveInt = 7
    steps: NonNegativeInt = 600_000
    batch: PositiveInt = 256
    lr: PositiveFloat = 3e-4
    decay: bool = True
    ema: float = Field(default=0.995, ge=0, lt=1)


class CriticConfig(Strict):
    """Implicit Q-learning."""

    name: Literal["iql"] = "iql"
    expectile: float = Field(default=0.7, gt=0, lt=1)
    gamma: float = Field(default=0.99, ge=0, lt=1)
    polyak: float = Field(default=0.005, gt=0, le=1)
    width: PositiveInt = 256
    layers: PositiveInt = 3
    activation: ActivationName = "silu"
    layer_norm: bool = True
    ensemble: PositiveInt = 2
    steps: NonNegativeInt = 1_000_000
    batch: PositiveInt = 256
    lr: PositiveFloat = 3e-4
    decay: bool = False


class CalibrationConfig(Strict):
    """Posterior variances on a grid of times; ``every`` matters in joint training only."""

    grid: int = Field(default=50, ge=2)
    samples: PositiveInt = 8192
    every: PositiveInt = 1000


class EnergyNetworkConfig(Strict):
    """The network E_Theta of trained energies."""

    width: PositiveInt = 256
    layers: PositiveInt = 3
    activation: ActivationName = "silu"
    steps: NonNegativeInt = 1_000_000
    batch: PositiveInt = 256
    lr: PositiveFloat = 3e-4
    decay: bool = True


Selection = Literal["best", "softmax", "smc"]


class GuidanceConfig(Strict):
    """From critic to guided actions."""

    energy: ComponentConfig = ComponentConfig(name="support_samples")
    """A closed form (``egd list``), or an objective that trains a network."""
    rule: ComponentConfig = ComponentConfig(name="additive")
    beta: PositiveFloat = 3.0
    omega: NonNegativeFloat = 1.0
    omegas: tuple[NonNegativeFloat, ...] = ()
    """Further guidance scales to evaluate beside it, in the same batched pass."""
    posterior: ComponentConfig = ComponentConfig(name="residual")
    """Of the energies that name none of their own."""
    clip_x0: bool = True
    """Keep the denoiser's x_0 within the range of the data's actions."""
    straight_through: bool = False
    """Energies that look through the denoiser see the derivatives of the unclipped x_0."""
    energy_scale: Literal["raw", "advantage_std"] = "raw"
    """E = V - Q in the critic's units, or divided by the data's spread of Q - V so that beta means the same on every task."""
    candidates: PositiveInt = 1
    """Draw that many actions for every state and keep one."""
    selection: Selection = "best"
    """Of the candidates: that of lowest energy; by softmax(-beta E); or by sequential Monte Carlo along the sampler, which
    corrects whatever the intermediate energy gets wrong."""


class SamplerConfig(Strict):
    """The reverse process; keys beyond these are settings of the sampler."""

    model_config = ConfigDict(frozen=True, extra="allow")
    name: str = "dpm_solver_pp_2m"
    steps: PositiveInt = 15
    spacing: Spacing = "time"
    end: float = Field(default=1e-3, ge=0, lt=1)

    def chosen(self) -> Sampler:
        """The sampler with its settings. UserError where it does not exist or does not have them."""
        return choose(Spec(self.name, self.model_extra or {}), "sampler", others=type(self).model_fields)


class EvaluationConfig(Strict):
    """Rollouts in the task's environment."""

    episodes: PositiveInt = 30
    every: NonNegativeInt = 0
    """Also evaluate every so many steps of the last phase (0: at the end only)."""
    envs: PositiveInt = 30
    """Environments a guidance scale runs at a time."""
    workers: NonNegativeInt = 0
    """Processes that step the environments while actions are sampled; 0: the main process, in between. Changes no result."""


class RunConfig(Strict):
    """One run: one task, one seed. ``config.yaml`` of a run folder holds exactly this."""

    experiment: str
    task: str
    method: str = "aepo"
    seed: NonNegativeInt = 0
    device: str = "cpu"
    threads: PositiveInt = 1
    """CPU threads: small networks gain nothing from more, and lose tenfold where another program wants the cores."""
    precision: Precision = "float32"
    """Of matrix products in training; ``bf16`` is twice as fast on CPUs and GPUs that have it."""
    compile: bool = False
    """Compile every loss (torch.compile): seconds at the start of each phase, faster steps."""
    training: Literal["phased", "joint"] = "phased"
    data: DataConfig = DataConfig()
    schedule: ComponentConfig = ComponentConfig(name="vp_linear")
    denoiser: DenoiserConfig = DenoiserConfig()
    critic: CriticConfig = CriticConfig()
    calibration: CalibrationConfig = CalibrationConfig()
    energy_network: EnergyNetworkConfig = EnergyNetworkConfig()
    guidance: GuidanceConfig = GuidanceConfig()
    variants: dict[str, GuidanceConfig] = Field(default_factory=dict)
    sampler: SamplerConfig = SamplerConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoint_every: PositiveInt = 5000
    log_every: PositiveInt = 500

    @field_validator("variants")
    @classmethod
    def _not_reserved(cls, value: dict[str, Any]) -> dict[str, Any]:
        if taken := {"behaviour", "guided"} & set(value):
            raise ValueError(f"a variant cannot be called {taken.pop()}: that is a name of its own in the results")
        return value

    @property
    def computing(self) -> Computing:
        """``precision`` and ``compile``."""
        return Computing(self.precision, self.compile)

    @property
    def arms(self) -> dict[str, GuidanceConfig]:
        """The headline guidance under the name ``guided``, and the variants."""
        return {"guided": self.guidance, **self.variants}
