"""The parts that components may ask for by name, in all experiments."""

from __future__ import annotations

PARTS = {
    "energy": "the clean energy `E(x_0, c)`, low where samples are wanted",
    "denoiser": "`D(x_t, t, c)` of the unguided model",
    "schedule": "`alpha(t)` and `sigma(t)` of that model",
    "moments": "the posterior's `Moments` over t, which a calibration estimates",
    "posterior": "the recipe's posterior",
    "support": "`support(c, K)`, K samples of `q(. | c)` for every row of c",
    "wanted": "`wanted(n, generator)`, samples of the target where it is given by samples",
    "beta": "the inverse temperature",
    "omega": "the guidance scale: a number, or a tensor (B,) with one a row",
    "low": "the lower end of the data's range",
    "high": "the upper end of the data's range",
    "x": "x_t at the first time, (B, ...)",
    "times": "times from noise to data, (N + 1,)",
    "c": "the context",
    "generator": "for random numbers in the steps",
}
"""Name -> description."""

POSTERIOR_PARTS = {"denoiser", "moments", "schedule"}
UNCALIBRATED_PARTS = {"energy", "posterior", "support", "beta", "denoiser", "schedule"}
"""Parts of an energy in a pipeline, whose posterior is calibrated outside it."""
ENERGY_PARTS = UNCALIBRATED_PARTS | POSTERIOR_PARTS
RATIO_PARTS = ENERGY_PARTS | {"wanted"}
"""Parts of an energy, or an objective, where the target is given by samples."""
RULE_PARTS = {"omega"}
WRAPPER_PARTS = {"denoiser", "low", "high"}
SAMPLER_PARTS = {"denoiser", "schedule", "x", "times", "c", "generator"}
"""Arguments of a sampler's call; its other parameters are settings."""
