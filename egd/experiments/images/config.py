"""The typed recipe of an image run."""

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
    """The denoiser, a ``UNet2DModel`` with one width for each resolution; each resolution is half the one before."""

    widths: tuple[Annotated[Width, Field(ge=8, multiple_of=8)], ...] = Field(default=(32, 64), min_length=1, max_length=8)
    layers: Layers = 1
    attention: bool = False
    """Self-attention at the lowest resolution. Tweedie's posterior cannot differentiate through it."""
    steps: Steps = 20_000
    batch: Batch = 64
    lr: Rate = 1e-3
    ema: Decay = 0.995


class ClassifierConfig(Strict):
    """The classifier that guides and the one that judges, which are trained on different images."""

    width: Width = 16
    steps: Steps = 1000
    batch: Batch = 64
    lr: Rate = 2e-3
    noise: NotNegative = 0.2
    """Standard deviation of the noise on the training images, which makes the classifier smoother."""


class ImageCalibrationConfig(CalibrationConfig):
    """Estimation of posterior covariances on a grid of times, in batches of images."""

    batch: Batch = 64


class TargetConfig(Strict):
    """The target distributions: q(x_0) exp(-beta E(x_0)) for every beta."""

    energy: ComponentConfig
    betas: tuple[Beta, ...] = Field(default=(1.0,), min_length=1, max_length=100)


class EstimatorConfig(Strict):
    """The estimator of E_t, and the use of its gradient."""

    guidance: ComponentConfig
    posterior: ComponentConfig = ComponentConfig(name="residual")
    rule: ComponentConfig = ComponentConfig(name="additive")
    omega: Omega = 1.0
    clip_x0: bool | ComponentConfig = True
    """Whether x_0 is kept in [-1, 1] by clipping, or the wrapper ``dynamic_threshold`` that does so."""

    @property
    def bound(self) -> bool | dict[str, Any]:
        """The value of ``clip_x0`` in the form of the pipeline's argument."""
        return self.clip_x0 if isinstance(self.clip_x0, bool) else self.clip_x0.model_dump()


class ImageEvaluationConfig(SampleEvaluationConfig):
    """Comparison of guided samples with data weighted by exp(-beta E)."""

    shown: Candidates = 10
    """Images in every cell of the figure."""


class ImagesConfig(RunSettings):
    """The settings of one run: one set of images, one seed."""

    data: ComponentConfig = ComponentConfig(name="digits")
    test_share: ProperShare = 0.2
    """Share of images on which nothing is trained."""
    scheduler: ComponentConfig = ComponentConfig.model_validate(
        {"name": "DPMSolverMultistepScheduler", "prediction_type": "v_prediction", "beta_schedule": "squaredcos_cap_v2"}
    )
    """A scheduler of ``diffusers`` and its settings: they determine the forward process, the UNet's prediction and the sampling
    steps.
    """
    steps: SamplerSteps = 25
    """Sampling steps of the scheduler."""
    unet: UNetConfig = UNetConfig()
    classifier: ClassifierConfig = ClassifierConfig()
    calibration: ImageCalibrationConfig = ImageCalibrationConfig(grid=25, samples=512)
    energy_network: TrainingConfig = TrainingConfig(steps=10_000, batch=64, lr=1e-3)
    """Training of the network that an estimator's objective brings; one is trained for every target and beta."""
    targets: dict[str, TargetConfig] = Field(min_length=1, max_length=100)
    estimators: dict[str, EstimatorConfig] = Field(min_length=1, max_length=100)
    evaluation: ImageEvaluationConfig = ImageEvaluationConfig(samples=100, reference=2000, draws=5000)
    checkpoint_every: Every = 1000
    log_every: Every = 100
