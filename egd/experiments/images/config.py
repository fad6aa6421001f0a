"""The recipe of an image run, typed."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from egd.bounds import (
    Batch,
    Beta,
    Candidates,
    Decay,
    Every,
    Layers,
    NotNegative,
    Omega,
    ProperShare,
    Rate,
    SamplerSteps,
    Steps,
    Width,
)
from egd.config.base import ComponentConfig, Strict
from egd.config.sections import CalibrationConfig, RunSettings, SampleEvaluationConfig, TrainingConfig


class UNetConfig(TrainingConfig):
    """The denoiser, a ``UNet2DModel``: one width a resolution, halved from one to the next."""

    widths: tuple[Annotated[Width, Field(ge=8, multiple_of=8)], ...] = Field(default=(32, 64), min_length=1, max_length=8)
    layers: Layers = 1
    attention: bool = False
    """Self-attention at the lowest resolution. Tweedie's posterior cannot look through it."""
    steps: Steps = 20_000
    batch: Batch = 64
    lr: Rate = 1e-3
    ema: Decay = 0.995


class ClassifierConfig(Strict):
    """The classifier that guides and the one that judges, trained on different images."""

    width: Width = 16
    steps: Steps = 1000
    batch: Batch = 64
    lr: Rate = 2e-3
    noise: NotNegative = 0.2
    """Standard deviation of noise on its training images: a smoother classifier."""


class ImageCalibrationConfig(CalibrationConfig):
    """Posterior covariances on a grid of times, some images at a time."""

    batch: Batch = 64


class TargetConfig(Strict):
    """What is wanted: q(x_0) exp(-beta E(x_0)) for every beta."""

    energy: ComponentConfig
    betas: tuple[Beta, ...] = Field(default=(1.0,), min_length=1, max_length=100)


class EstimatorConfig(Strict):
    """How E_t is estimated, and how its gradient is used."""

    guidance: ComponentConfig
    posterior: ComponentConfig = ComponentConfig(name="residual")
    rule: ComponentConfig = ComponentConfig(name="additive")
    omega: Omega = 1.0
    clip_x0: bool | ComponentConfig = True
    """Keep x_0 in [-1, 1] by clipping, or by ``dynamic_threshold``."""

    @property
    def bound(self) -> bool | dict[str, Any]:
        """``clip_x0`` as the pipeline takes it."""
        return self.clip_x0 if isinstance(self.clip_x0, bool) else self.clip_x0.model_dump()


class ImageEvaluationConfig(SampleEvaluationConfig):
    """Guided samples against data weighted by exp(-beta E)."""

    shown: Candidates = 10
    """Images of every cell of the figure."""


class ImagesConfig(RunSettings):
    """One run: one set of images, one seed."""

    data: ComponentConfig = ComponentConfig(name="digits")
    test_share: ProperShare = 0.2
    """Images that nothing is trained on."""
    scheduler: ComponentConfig = ComponentConfig.model_validate(
        {"name": "DPMSolverMultistepScheduler", "prediction_type": "v_prediction", "beta_schedule": "squaredcos_cap_v2"}
    )
    """A scheduler of ``diffusers`` and its settings: the forward process, what the UNet predicts, and the steps."""
    steps: SamplerSteps = 25
    """Of the scheduler."""
    unet: UNetConfig = UNetConfig()
    classifier: ClassifierConfig = ClassifierConfig()
    calibration: ImageCalibrationConfig = ImageCalibrationConfig(grid=25, samples=512)
    targets: dict[str, TargetConfig] = Field(min_length=1, max_length=100)
    estimators: dict[str, EstimatorConfig] = Field(min_length=1, max_length=100)
    evaluation: ImageEvaluationConfig = ImageEvaluationConfig(samples=100, reference=2000, draws=5000)
    checkpoint_every: Every = 1000
    log_every: Every = 100
