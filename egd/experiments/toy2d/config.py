"""The recipe of a 2-D run, typed."""

from __future__ import annotations

from pydantic import Field

from egd.bounds import (
    BetaOrZero,
    Omega,
)
from egd.config.base import ComponentConfig
from egd.config.sections import (
    CalibrationConfig,
    DenoiserConfig,
    EnergyNetworkConfig,
    RunSettings,
    SampleEvaluationConfig,
    SamplerConfig,
)


class ClippedDenoiserConfig(DenoiserConfig):
    """The network. What it predicts matters: with ``epsilon`` its error in x_0 is 150 times larger at t = 1, and so is
    that of estimators which differentiate it."""

    clip_x0: bool = True
    """Keep x_0 within the range of the data, unguided and guided."""


class Toy2dConfig(RunSettings):
    """One run: one data set, one seed."""

    schedule: ComponentConfig = ComponentConfig(name="vp_linear")
    denoiser: ClippedDenoiserConfig = ClippedDenoiserConfig(
        prediction="v_prediction", width=128, blocks=3, steps=20_000, batch=512, lr=1e-3
    )
    calibration: CalibrationConfig = CalibrationConfig()
    posterior: ComponentConfig = ComponentConfig(name="residual")
    """For the estimators that name no posterior of their own."""
    energy_network: EnergyNetworkConfig = EnergyNetworkConfig(width=128, steps=10_000, batch=512, lr=1e-3)
    """Of a trained energy; one is trained for every such estimator and beta."""
    estimators: dict[str, ComponentConfig] = Field(min_length=1, max_length=100)
    """Title -> a closed form, or an objective that trains a network, or ``energy_weights``: an unguided denoiser of
    the weighted data, trained like the first one."""
    betas: tuple[BetaOrZero, ...] = Field(default=(0.0, 3.0, 10.0, 20.0), min_length=1, max_length=100)
    rule: ComponentConfig = ComponentConfig(name="additive")
    omega: Omega = 1.0
    sampler: SamplerConfig = SamplerConfig(steps=25, spacing="time")
    evaluation: SampleEvaluationConfig = SampleEvaluationConfig()
