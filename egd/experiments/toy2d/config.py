"""The typed recipe of a 2-D run."""

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
    """The network of the denoiser. With the prediction ``epsilon`` its error in x_0 is 150 times larger at t = 1, and so is the
    error of estimators that differentiate it.
    """

    clip_x0: bool = True
    """Whether x_0 is clipped to the range of the data, unguided and guided."""


class Toy2dConfig(RunSettings):
    """The settings of one run: one data set, one seed."""

    schedule: ComponentConfig = ComponentConfig(name="vp_linear")
    denoiser: ClippedDenoiserConfig = ClippedDenoiserConfig(
        prediction="v_prediction", width=128, blocks=3, steps=20_000, batch=512, lr=1e-3
    )
    calibration: CalibrationConfig = CalibrationConfig()
    posterior: ComponentConfig = ComponentConfig(name="residual")
    """The posterior of estimators that name none of their own."""
    energy_network: EnergyNetworkConfig = EnergyNetworkConfig(width=128, steps=10_000, batch=512, lr=1e-3)
    """The network of a trained energy; one is trained for every such estimator and beta."""
    estimators: dict[str, ComponentConfig] = Field(min_length=1, max_length=100)
    """Title -> a closed form, an objective that trains a network, or ``energy_weights``: an unguided denoiser trained like the
    first one, on the weighted data.
    """
    betas: tuple[BetaOrZero, ...] = Field(default=(0.0, 3.0, 10.0, 20.0), min_length=1, max_length=100)
    rule: ComponentConfig = ComponentConfig(name="additive")
    omega: Omega = 1.0
    sampler: SamplerConfig = SamplerConfig(steps=25, spacing="time")
    evaluation: SampleEvaluationConfig = SampleEvaluationConfig()
