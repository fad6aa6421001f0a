"""Steps of a ``diffusers`` scheduler with a guided denoiser, and checks that a scheduler can be guided."""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Hashable
from functools import lru_cache
from typing import Any, cast

import torch
from torch import Tensor

from egd.denoisers import convert
from egd.errors import UserError
from egd.schedules.diffusers import Diffusers
from egd.tensors import expand, isolated_rng
from egd.types import Denoiser

T_MIN = 1e-7  # the data itself, sigma = 0, has no score
TOKENS = {"mask_token_id", "num_vec_classes", "temperature", "entropy_bound"}
"""Settings and arguments of schedulers of discrete tokens alone."""

TRIAL_STEPS, TRIAL_ROWS, TRIAL_MEAN, TRIAL_STD = 40, 1024, 0.1, 0.4
NEAR = 0.2
"""Tolerance of the trial's mean and standard deviation, as a share of the true standard deviation: with 40 steps the
first-order schedulers are off by 0.15 at most, and those of consistency models by 0.3 at least."""


class SchedulerSteps:
    """Run of a scheduler from noise to data, on a copy: the given scheduler's state does not change.

    ``mu`` is the shift of a flow with ``use_dynamic_shifting``; without it the times are not shifted. Raises ValueError for a
    ``mu`` that the scheduler does not take, and for a number of steps that it cannot take.
    """

    def __init__(
        self, scheduler: Any, schedule: Diffusers | None, steps: int, device: Any = "cpu", mu: float | None = None
    ) -> None:
        self.scheduler, self.schedule = copy.deepcopy(scheduler), schedule
        shift = _shift(scheduler, mu)
        try:
            self.scheduler.set_timesteps(steps, device=device, **shift)
        except (ArithmeticError, IndexError, ValueError) as error:  # UnCLIP divides by steps - 1, PNDM takes 4 steps or more
            raise ValueError(f"{type(scheduler).__name__} cannot take num_inference_steps = {steps}: {error}") from error
        if hasattr(self.scheduler, "set_begin_index"):  # else it searches the first timestep, which rounding may have doubled
            self.scheduler.set_begin_index(0)
        self.timesteps: Tensor = self.scheduler.timesteps
        if not self.timesteps.isfinite().all():  # KDPM2's ancestral scheduler may interpolate log sigma = -inf
            raise ValueError(f"{type(scheduler).__name__} cannot take num_inference_steps = {steps}; take more")

    @property
    def noise_std(self) -> Any:
        """Standard deviation of the noise before the first step."""
        return getattr(self.scheduler, "init_noise_sigma", 1.0)

    def network_input(self, x: Tensor, timestep: Any) -> Tensor:
        """Return the input that the scheduler gives its network for its own x, shaped like x."""
        scale = getattr(self.scheduler, "scale_model_input", None)
        scaled: Tensor = x if scale is None else scale(x, timestep)
        return scaled

    def guided_output(self, denoiser: Denoiser, x: Tensor, timestep: Any, c: Any = None) -> Tensor:
        """Return the network output with which the scheduler steps towards the denoiser's x_0, shaped like x."""
        assert self.schedule is not None
        scaled = self.network_input(x, timestep)
        x_t = x if self.schedule.family == "edm" else scaled  # k-diffusion's x_t / alpha_t is scaled back to x_t
        t = self._time(self.schedule, timestep).to(x.device, torch.promote_types(x.dtype, torch.float32)).expand(len(x))
        return network_output(self.scheduler, self.schedule, denoiser(x_t, t, c), x_t, t).to(x.dtype)

    def step(self, output: Tensor, index: int, x: Tensor, generator: Any = None, eta: float = 0.0) -> Tensor:
        """Return the next x by the scheduler's own step number ``index``."""
        following = self.timesteps[index + 1] if index + 1 < len(self.timesteps) else None
        extra = {"generator": generator, "eta": eta, "prev_timestep": following}
        accepted = inspect.signature(self.scheduler.step).parameters
        extra = {name: value for name, value in extra.items() if name in accepted}
        following_x: Tensor = self.scheduler.step(output, self.timesteps[index], x, **extra).prev_sample
        return following_x

    def _time(self, schedule: Diffusers, timestep: Any) -> Tensor:
        """Return the scheduler's present t, (), by its table of noise levels if it keeps one: timesteps may be rounded."""
        sigmas = getattr(self.scheduler, "sigmas", None)
        if sigmas is None or hasattr(self.scheduler, "sigmas_interpol"):  # KDPM2 steps between the entries of its table
            t = (torch.as_tensor(timestep).double() + 1) / schedule.steps
        else:
            sigma = sigmas[self.scheduler.step_index or 0].double()
            alpha = 1 - sigma if schedule.family == "flow" else torch.ones_like(sigma)
            t = schedule.time((alpha / sigma).log())
        return t.clamp(T_MIN, 1.0)


def network_output(scheduler: Any, schedule: Diffusers, x0: Tensor, x: Tensor, t: Tensor) -> Tensor:
    """Compute the output of the scheduler's network at x_t = x (B, ...), t (B,) for which D(x_t, t) is x0: shaped like x."""
    if not hasattr(scheduler, "precondition_outputs"):
        return convert(x0, x, t, schedule, "sample", schedule.prediction)
    sigma = expand(schedule.sigma(t), x)
    skipped = scheduler.precondition_outputs(x, torch.zeros_like(x), sigma)
    gain = scheduler.precondition_outputs(torch.zeros_like(x), torch.ones_like(x), sigma)
    output: Tensor = (x0 - skipped) / gain
    return output


def _shift(scheduler: Any, mu: float | None) -> dict[str, float]:
    """Return the argument ``mu`` of ``set_timesteps``, if the scheduler takes one."""
    dynamic = scheduler.config.get("use_dynamic_shifting", False)
    if not (dynamic and "mu" in inspect.signature(scheduler.set_timesteps).parameters):
        if mu is not None:
            raise ValueError(f"mu = {mu}, and {type(scheduler).__name__} has no dynamic shift; leave mu out")
        return {}
    neutral = 1.0 if scheduler.config.get("time_shift_type") == "linear" else 0.0
    return {"mu": neutral if mu is None else mu}


def check_steps(scheduler: Any) -> None:
    """Raise UserError, with the class and the reason, for a scheduler whose ``step`` cannot run from noise to an image."""
    reason = _unlike_others(scheduler)
    if reason:
        raise _refusal(scheduler, reason)


def check_guidable(scheduler: Any, eta: float = 0.0) -> Diffusers:
    """Return the schedule of a scheduler that can be guided. Raises UserError, with the class and the reason, for any other.

    Beside the checks of its signature and settings, the scheduler is tried: with the exact denoiser of a normal distribution
    its samples must have that distribution. Schedulers made for consistency models, whose network is no denoiser, fail.
    """
    check_steps(scheduler)
    schedule = Diffusers(scheduler)
    if not hasattr(scheduler, "precondition_outputs"):
        _ = schedule.prediction
    reason = _fault(cast(Hashable, type(scheduler)), scheduler.to_json_string(), eta)
    if reason:
        raise _refusal(scheduler, reason)
    return schedule


def _refusal(scheduler: Any, reason: str) -> UserError:
    return UserError(f"{type(scheduler).__name__} cannot be guided: {reason}; take another scheduler, such as DDIMScheduler")


def _unlike_others(scheduler: Any) -> str | None:
    """Return the reason why a scheduler cannot run from noise to an image, or None."""
    if not all(hasattr(scheduler, name) for name in ("config", "from_config", "to_json_string")):
        return "it is no ConfigMixin of diffusers (a placeholder, where the installed version lacks it)"
    if not (hasattr(scheduler, "set_timesteps") and hasattr(scheduler, "step")):
        return "it has no set_timesteps(number) and step(model_output, timestep, sample)"
    if scheduler.config.get("stages", 1) > 1:
        return "it runs in stages, at sizes that grow"
    return _unlike_step(scheduler)


def _unlike_step(scheduler: Any) -> str | None:
    """Return the reason why a scheduler's ``step`` cannot be called as others', or None."""
    arguments = inspect.signature(scheduler.step).parameters
    if TOKENS & {*arguments, *scheduler.config}:
        return "it draws discrete tokens, and guidance moves real numbers"
    usual = ("model_output", "timestep", "sample")
    more = [n for n, p in arguments.items() if n not in usual and p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    if more:
        return f"its step needs {', '.join(more)} beside the network's output, the timestep and the image"
    if tuple(arguments)[:3] != usual:
        return f"its step takes {', '.join(tuple(arguments)[:3])} in place of {', '.join(usual)}"
    return None


@lru_cache(maxsize=64)
def _fault(kind: Any, config: str, eta: float) -> str | None:
    """Return the reason why samples of a normal distribution come out wrong, or None where they come out right."""
    scheduler = kind.from_config(json.loads(config))
    most = (scheduler.config.get(name) or TRIAL_STEPS for name in ("num_train_timesteps", "original_inference_steps"))
    steps = min(TRIAL_STEPS, *most)
    try:
        with isolated_rng(), torch.no_grad(), torch.device("cpu"):
            run = SchedulerSteps(scheduler, Diffusers(scheduler), steps)
            if len(run.timesteps) > 1 and bool(run.timesteps[0] < run.timesteps[-1]):
                return "its timesteps rise, from an image to noise"
            x = _normal_samples(run, eta)
    except Exception as error:  # a user's scheduler may raise anything
        return f"{steps} steps of it end in {type(error).__name__}: {error}"
    if not x.isfinite().all():
        return f"with the exact denoiser of a normal distribution, {steps} steps end in values that are not finite"
    mean, std = float(x.mean()), float(x.std())
    if abs(mean - TRIAL_MEAN) <= NEAR * TRIAL_STD and abs(std - TRIAL_STD) <= NEAR * TRIAL_STD:
        return None
    return (
        f"with the exact denoiser of N({TRIAL_MEAN}, {TRIAL_STD}^2), {steps} steps give mean {mean:.3g} and standard deviation "
        f"{std:.3g} (as the schedulers of consistency models do, whose network is no denoiser)"
    )


def _normal_samples(run: SchedulerSteps, eta: float) -> Tensor:
    """Sample a normal distribution with its exact denoiser by the scheduler's steps: (TRIAL_ROWS, 1, 1, 1)."""
    schedule, generator = run.schedule, torch.Generator().manual_seed(0)
    assert schedule is not None

    def exact(x: Tensor, t: Tensor, c: Any = None) -> Tensor:
        alpha, sigma = expand(schedule.alpha(t), x), expand(schedule.sigma(t), x)
        gain = alpha * TRIAL_STD**2 / (alpha**2 * TRIAL_STD**2 + sigma**2)
        return TRIAL_MEAN + gain * (x - alpha * TRIAL_MEAN)

    quantiles = (torch.arange(TRIAL_ROWS, dtype=torch.float32) + 0.5) / TRIAL_ROWS  # noise with exact moments
    noise = torch.special.ndtri(quantiles)[torch.randperm(TRIAL_ROWS, generator=generator)]
    x: Tensor = noise.reshape(-1, 1, 1, 1) * run.noise_std
    for i, timestep in enumerate(run.timesteps):
        x = run.step(run.guided_output(exact, x, timestep), i, x, generator, eta)
    return x
