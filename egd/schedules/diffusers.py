"""Schedulers of the ``diffusers`` library as schedules."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any, Literal

import torch
from torch import Tensor

from egd.denoisers import Prediction
from egd.errors import UserError, nearest
from egd.schedules.edm import EDM
from egd.schedules.flow_matching import FlowMatching
from egd.schedules.tabulated import Tabulated
from egd.schedules.ve import VE
from egd.types import Schedule

__all__ = ["Diffusers"]

Family = Literal["vp", "flow", "edm"]
PREDICTIONS: dict[str, Prediction] = {
    "epsilon": "epsilon",
    "sample": "sample",
    "v_prediction": "v_prediction",
    "flow_prediction": "flow",
}


class Diffusers:
    """Forward process that a ``diffusers`` scheduler was written for, t from 0 to 1.

    | family | alpha, sigma | timestep |
    | --- | --- | --- |
    | VP | alpha^2 = ``alphas_cumprod`` at t = (n + 1)/N, linear in log-SNR between | n |
    | flow | sigma = shift t / (1 + (shift - 1) t), alpha = 1 - sigma | N sigma |
    | EDM | sigma from sigma_max to sigma_min, Karras' or exponential, alpha = 1 | 0.25 log sigma |

    A dynamic shift of a flow is left out (shift = 1): it only changes the spacing of the times, which the sampler chooses.

    ``scheduler`` is a scheduler, or the name of its class with ``config`` as its settings. Only the forward process is used:
    the steps are those of ``egd.samplers``. Raises UserError for a scheduler of none of these families.
    """

    def __init__(self, scheduler: Any, config: Mapping[str, Any] | None = None) -> None:
        self.scheduler = _make(scheduler, config or {}) if isinstance(scheduler, str) else scheduler
        try:
            self.family, self.forward = _forward(self.scheduler)
        except ValueError as error:
            raise UserError(f"{type(self.scheduler).__name__}: {error}") from error
        self.steps = int(self.scheduler.config.num_train_timesteps)
        if self.family == "edm":
            self.input_scale = self.forward.input_scale  # type: ignore[attr-defined]

    def alpha(self, t: Tensor) -> Tensor:
        """Return alpha_t: (B,) -> (B,)."""
        return self.forward.alpha(t)

    def sigma(self, t: Tensor) -> Tensor:
        """Return sigma_t: (B,) -> (B,)."""
        return self.forward.sigma(t)

    def time(self, lam: Tensor) -> Tensor:
        """Return the t at which log(alpha_t / sigma_t) = lam: (B,) -> (B,)."""
        t: Tensor = self.forward.time(lam)  # type: ignore[attr-defined]
        return t

    def timestep(self, t: Tensor) -> Tensor:
        """Return the timestep of the trained network for t, fractional between its training steps: (B,) -> (B,)."""
        if self.family == "flow":
            return self.steps * self.sigma(t)
        if self.family == "edm":
            return 0.25 * self.sigma(t).log()
        return (self.steps * t - 1).clamp(0, self.steps - 1)

    @property
    def prediction(self) -> Prediction:
        """Prediction type of the scheduler's network. Raises UserError where no type of ours fits."""
        config = self.scheduler.config
        name = config.get("prediction_type", "flow_prediction" if self.family == "flow" else "epsilon")
        if "sigma_data" in config and not hasattr(self.scheduler, "precondition_outputs"):
            kind = type(self.scheduler).__name__
            raise UserError(f"{kind} is made for consistency models, which are no denoisers; take another scheduler")
        if "sigma_data" in config and (name, config.sigma_data) != ("v_prediction", 1.0):
            raise UserError(
                f"{type(self.scheduler).__name__} predicts '{name}' in units of sigma_data = {config.sigma_data}; write the "
                "denoiser by its precondition_inputs and precondition_outputs (only v_prediction with sigma_data = 1 is ours)"
            )
        if name not in PREDICTIONS:
            raise UserError(f"{type(self.scheduler).__name__} predicts '{name}'; {nearest(name, PREDICTIONS)}")
        return PREDICTIONS[name]


def from_diffusers(scheduler: Any) -> Diffusers:
    """Return the schedule of a scheduler, such as ``pipe.scheduler``. Raises UserError as ``Diffusers``."""
    return Diffusers(scheduler)


def _forward(scheduler: Any) -> tuple[Family, Schedule]:
    name = type(scheduler).__name__
    if not isinstance(getattr(scheduler, "config", None), Mapping):
        raise UserError(f"{name} has no config; is it a scheduler of diffusers, and does the installed version have it?")
    config = scheduler.config
    if name.startswith("FlowMatch") or config.get("use_flow_sigmas"):
        return "flow", _flow(config, name)
    if "sigma_data" in config or config.get("timestep_type") == "continuous":
        return "edm", _edm(config, name)
    if not hasattr(scheduler, "alphas_cumprod"):
        raise UserError(f"{name} has neither alphas_cumprod, nor flow-matching sigmas, nor sigma_min, sigma_max and sigma_data")
    product = scheduler.alphas_cumprod.detach().double().cpu()
    if product[-1] >= product[-2]:  # zero terminal SNR; diffusers raises it a little so that sigma/alpha is finite
        product = torch.cat([product[:-1], torch.zeros_like(product[:1])])
    if len(product) != config.num_train_timesteps:
        raise ValueError(f"{len(product)} betas and num_train_timesteps = {config.num_train_timesteps}; make them one number")
    if not (product[-1] >= 0 and product[0] < 1 and bool((product.diff() < 0).all())):
        raise ValueError("alphas_cumprod must fall from below 1 to 0 at least; are all betas between 0 and 1?")
    return "vp", Tabulated(0.5 * (product.log() - torch.log1p(-product)))


def _flow(config: Any, name: str) -> FlowMatching:
    if config.get("invert_sigmas"):
        raise UserError(f"{name} has invert_sigmas, with data at t = 1; set it to false and flip the network's time")
    dynamic = config.get("use_dynamic_shifting")
    return FlowMatching(1.0 if dynamic else config.get("flow_shift", config.get("shift", 1.0)))


def _edm(config: Any, name: str) -> EDM | VE:
    low, high = config.get("sigma_min"), config.get("sigma_max")
    if low is None or high is None:
        raise UserError(f"{name} has continuous timesteps but no sigma_min and sigma_max; give both")
    if config.get("sigma_schedule") == "exponential" or config.get("use_exponential_sigmas"):
        return VE(low, high)
    return EDM(low, high, config.get("rho", 7.0))


def _make(name: str, config: Mapping[str, Any]) -> Any:
    try:
        library = import_module("diffusers")
    except ImportError as error:
        raise UserError(f"the schedule 'diffusers' needs that library: {error}; pip install diffusers") from error
    known = [n for n in dir(library) if n.endswith("Scheduler")]
    if name not in known:
        raise UserError(f"diffusers has no scheduler '{name}'; {nearest(name, known)}")
    _check_numbers(name, config)
    try:
        return getattr(library, name)(**config)
    except Exception as error:  # whatever a foreign class raises
        raise UserError(f"{name} cannot be made of {dict(config)}: {error}") from error


def _check_numbers(name: str, config: Mapping[str, Any]) -> None:
    """Raise UserError for a setting beyond what any scheduler can mean; diffusers itself does not bound settings."""
    for key, value in config.items():
        most = 100_000 if key == "num_train_timesteps" else 1e9
        numbers = value if isinstance(value, list | tuple) else [value]
        if any(isinstance(n, int | float) and not abs(n) <= most for n in numbers):
            raise UserError(f"{key} of {name} is {value!r}: give a number, at most {most:,.0f}")
