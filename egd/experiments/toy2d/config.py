"""The recipe of a 2-D run, typed."""

from __future__ import annotations

from pydantic import Field

from egd.bounds import (
    Batch,
    BetaOrZero,
    Candidates,
    Decay,
    Every,
    Grid,
    Layers,
    Omega,
    Positive,
    Rate,
    SamplerSteps,
    Samples,
    Seed,
    Steps,
    Threads,
    Width,
)
from egd.config.base import ComponentConfig, Strict
from egd.config.sections import NetworkConfig
from egd.denoisers import Prediction
from egd.schedules import Spacing


class DenoiserConfig(Strict):
    """The network. What it predicts matters: with ``epsilon`` its error in x_0 is 150 times larger at t = 1, and so is
    that of estimators which differentiate it."""

    prediction: Prediction = "v_prediction"

    width: Width = 128
    blocks: Layers = 3
    steps: Steps = 20_000
    batch: Batch = 512
    lr: Rate = 1e-3
    decay: bool = True
    ema: Decay = 0.995
    clip_x0: bool = True
    """Keep x_0 within the range of the data, unguided and guided."""


class CalibrationConfig(Strict):
    """Posterior covariances on a grid of times."""

    grid: Grid = 50
    samples: Samples = 8192


class EnergyNetworkConfig(NetworkConfig):
    """The network of a trained energy; one is trained for every such estimator and beta."""

    width: Width = 128
    steps: Steps = 10_000
    batch: Batch = 512
    lr: Rate = 1e-3


class SamplerConfig(Strict):
    """The reverse process."""

    name: str = "dpm_solver_pp_2m"
    steps: SamplerSteps = 25
    spacing: Spacing = "time"
    end: Decay = 1e-3


class EvaluationConfig(Strict):
    """Guided samples against exact ones."""

    samples: Samples = 2000
    reference: Samples = 20_000
    """Exact samples to measure distances to."""
    draws: Samples = 1_000_000
    """Points of the data set that are weighted by exp(-beta E) to make the exact samples."""
    projections: Candidates = 128


class Toy2dConfig(Strict):
    """One run: one data set, one seed. ``config.yaml`` of a run folder holds exactly this."""

    experiment: str
    task: str
    seed: Seed = 0
    device: str = "cpu"
    threads: Threads = 1
    schedule: ComponentConfig = ComponentConfig(name="vp_linear")
    denoiser: DenoiserConfig = DenoiserConfig()
    calibration: CalibrationConfig = CalibrationConfig()
    posterior: ComponentConfig = ComponentConfig(name="residual")
    """For the estimators that name no posterior of their own."""
    energy_network: EnergyNetworkConfig = EnergyNetworkConfig()
    estimators: dict[str, ComponentConfig] = Field(min_length=1, max_length=100)
    """Title -> a closed form, or an objective that trains a network, or ``energy_weights``: an unguided denoiser of
    the weighted data, trained like the first one."""
    betas: tuple[BetaOrZero, ...] = Field(default=(0.0, 3.0, 10.0, 20.0), min_length=1, max_length=100)
    rule: ComponentConfig = ComponentConfig(name="additive")
    omega: Omega = 1.0
    sampler: SamplerConfig = SamplerConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoint_every: Every = 5000
    checkpoint_minutes: Positive = 5.0
    """A checkpoint too whenever the last one is so old. Changes no result."""
    log_every: Every = 500
