"""A ``diffusers`` pipeline whose samples are guided by an energy. Importing this module imports diffusers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput, SchedulerMixin, UNet2DModel
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from egd.config.catalogue import ENERGIES, POSTERIORS, RULES, WRAPPERS
from egd.config.components import Spec, build, parameters, wanted_parts
from egd.config.parts import UNCALIBRATED_PARTS
from egd.denoisers import NetworkDenoiser
from egd.energies.base import prepare
from egd.guidance import guide
from egd.pipelines.inputs import (
    check_energy,
    check_images,
    check_numbers,
    check_output_type,
    check_rows,
    checked_support,
    replaced,
    scale_of,
    warn_of_dropout,
)
from egd.posteriors import MomentPosterior, calibrate
from egd.posteriors.moments import MomentKind
from egd.rules import Additive
from egd.samplers.watching import finish, watching
from egd.schedules import Diffusers, from_diffusers
from egd.schedules.stepping import SchedulerSteps, check_guidable, check_steps
from egd.tensors import expand
from egd.types import Context, Denoiser, Energy, GuidanceRule, Posterior, Support, TimedEnergy
from egd.wrappers import Clip

Component: TypeAlias = str | Mapping[str, Any] | Callable[..., Any]
"""Component: its name, ``{name: ..., setting: ...}`` as in a recipe, or an object."""


@dataclass(frozen=True)
class UNetDenoiser:
    """Denoiser D(x_t, t) of a UNet trained for a scheduler, of any prediction type, at any t in (0, 1]; x_t is the schedule's.

    ``c`` is None or a mapping; its ``class_labels`` (B,), where it has them, are passed to the UNet.
    """

    unet: Any
    scheduler: Any
    schedule: Diffusers

    def __call__(self, x: Tensor, t: Tensor, c: Context = None) -> Tensor:
        """Return E[x_0 | x_t, c]: (B, C, H, W), (B,), c -> (B, C, H, W)."""
        if not hasattr(self.scheduler, "precondition_outputs"):
            return NetworkDenoiser(self._network, self.schedule, self.schedule.prediction)(x, t, c)
        sigma = expand(self.schedule.sigma(t), x)
        output = self._network(self.scheduler.precondition_inputs(x, sigma), t, c)
        denoised: Tensor = self.scheduler.precondition_outputs(x, output, sigma)
        return denoised

    def _network(self, x: Tensor, t: Tensor, c: Context) -> Tensor:
        labels = c.get("class_labels") if isinstance(c, Mapping) else None
        output: Tensor = run_unet(self.unet, x, self.schedule.timestep(t), labels)
        return output.to(x.dtype)


def run_unet(unet: Any, x: Tensor, timestep: Tensor, labels: Tensor | None) -> Tensor:
    """Return the UNet's output; class labels are passed only where there are some."""
    extra = {} if labels is None else {"class_labels": labels}
    output: Tensor = unet(x.to(unet.dtype), timestep, **extra).sample
    return output


class EnergyGuidedPipeline(DiffusionPipeline):  # type: ignore[misc]
    """Pipeline that samples images of a trained UNet from p(x_0) ~ q(x_0) exp(-beta E(x_0)), by the steps of any scheduler.

    ``unet`` is a ``UNet2DModel`` or the like (class labels optional), ``scheduler`` any ``diffusers`` scheduler that
    ``egd.schedules.Diffusers`` can read: those of VP, k-diffusion (Euler, Heun, ...), EDM and flow matching. At each step
    D(x_t, t) is guided as in ``egd.guidance.guide``, and converted into the output that the scheduler expects of the UNet.
    Folders written by ``DDPMPipeline`` and ``DDIMPipeline`` load as they are.
    """

    model_cpu_offload_seq = "unet"

    def __init__(self, unet: UNet2DModel, scheduler: SchedulerMixin) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        energy: Energy | None = None,
        beta: float = 1.0,
        guidance: Component = "dps",
        posterior: Component | None = None,
        support: Support | None = None,
        rule: Component | None = None,
        omega: float | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        num_inference_steps: int = 50,
        clip_x0: bool | Component = True,
        class_labels: Tensor | None = None,
        context: Mapping[str, Tensor] | None = None,
        eta: float = 0.0,
        mu: float | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[[Any, int, Any, dict[str, Any]], Mapping[str, Tensor] | None] | None = None,
        guidance_scale: float | None = None,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Sample images. With neither an energy nor a callable ``guidance`` they are exactly those of ``diffusers``.

        ``energy(x_0, c)`` takes x_0 (B, C, H, W) in [-1, 1] and returns (B,), low = wanted. c is ``context`` with
        ``class_labels`` (B,) added, or None. ``guidance`` says how E_t is estimated: a name (``egd list``), ``{name: ...,
        setting: ...}``, or a callable that returns a timed energy and is given those of energy, denoiser, posterior, schedule,
        support and beta that its parameters name. ``posterior`` is a callable (see ``calibrate``) or a name, and ``support``
        returns samples of the data; they are needed only where the guidance uses them. ``rule`` is additive at ``omega`` (1
        unless given) by default; ``guidance_scale`` is another name of ``omega``. ``clip_x0`` keeps x_0 in [-1, 1], before and
        after guidance; ``dynamic_threshold`` does so by shrinking. ``eta`` is passed to schedulers that take one, ``mu`` to
        flows with a dynamic shift. The scheduler's own state does not change. ``output_type`` is ``pil``, ``np`` or ``pt``,
        from 0 to 1, or ``latent``, as sampled. ``callback_on_step_end(pipe, step, timestep, {"image": x})`` may return
        {"image": another}.

        Raises UserError for a name or setting that does not exist and for a scheduler that cannot be guided, ValueError for a
        missing posterior or support, for a UNet that also predicts variances, and for an invalid argument.
        """
        check_output_type(output_type)
        omega = scale_of(omega, guidance_scale)
        check_numbers(batch_size=batch_size, num_inference_steps=num_inference_steps, beta=beta, omega=omega, eta=eta)
        check_rows(batch_size, generator, class_labels, context)
        device = self._execution_device
        labels = None if class_labels is None else class_labels.to(device)
        c = _context(context, labels)
        check_steps(self.scheduler)
        warn_of_dropout(self.unet)
        if energy is not None:
            check_energy(energy, (batch_size, *self._event()), c, device, self.unet.dtype)
        guided: Denoiser | None = None
        schedule: Diffusers | None = None
        if energy is not None or callable(guidance):
            schedule = check_guidable(self.scheduler, eta)
            guided = self._guided(energy, beta, guidance, posterior, support, rule, omega, clip_x0, c)
        steps = SchedulerSteps(self.scheduler, schedule, num_inference_steps, device, mu)
        shape = (batch_size, *self._event())
        noise = image = randn_tensor(shape, generator=generator, device=device, dtype=self.unet.dtype) * steps.noise_std
        with watching(single_run=True) as watch:
            for i, timestep in enumerate(self.progress_bar(steps.timesteps)):
                if guided is None:
                    output = run_unet(self.unet, steps.network_input(image, timestep), timestep, labels)
                else:
                    output = steps.guided_output(guided, image, timestep, c)
                image = steps.step(output, i, image, generator, eta)
                if callback_on_step_end is not None:
                    image = replaced(image, callback_on_step_end(self, i, timestep, {"image": image}))
            if guided is not None:
                finish(watch, noise, image)
        images = self._finish(image, output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    @property
    def schedule(self) -> Diffusers:
        """Forward process of the scheduler."""
        return from_diffusers(self.scheduler)

    def denoiser(self, *, clip_x0: bool | Component = True) -> Denoiser:
        """Return D(x_t, t, c) of the UNet under the present scheduler."""
        return _bounded(UNetDenoiser(self.unet, self.scheduler, self.schedule), clip_x0)

    def calibrate(
        self,
        images: Tensor,
        *,
        kind: MomentKind = "residual",
        clip_x0: bool = True,
        class_labels: Tensor | None = None,
        generator: torch.Generator | None = None,
        grid: int = 20,
        samples: int = 512,
        batch: int = 64,
    ) -> MomentPosterior:
        """Estimate the posterior N(D, v(t) I) on images (N, C, H, W) in [-1, 1], for ``posterior=`` of a call.

        It takes grid * samples evaluations of the UNet, and holds for this UNet and kind of schedule. Raises ValueError for
        images unlike the UNet's, such as those of uint8; without ``clip_x0`` their range is not checked.
        """
        device = self._execution_device
        check_images("images", images, self._event(), bounded=clip_x0)
        if images.ndim != 4:
            raise ValueError(f"images: expected (N, C, H, W), got {tuple(images.shape)}")
        check_rows(len(images), None, class_labels, None)
        data = images.to(device, self.unet.dtype)
        labels = None if class_labels is None else class_labels.to(device)

        def sample(n: int, generator: torch.Generator) -> tuple[Tensor, Context]:
            rows = torch.randint(len(data), (n,), generator=generator, device=generator.device).to(device)
            return data[rows], _context(None, None if labels is None else labels[rows])

        denoiser, schedule = self.denoiser(clip_x0=clip_x0), self.schedule
        generator = generator or torch.Generator(device).manual_seed(0)
        moments = calibrate(
            denoiser,
            schedule,
            sample,
            generator=generator,
            grid=grid,
            samples=samples,
            batch=batch,
            full_up_to=0,
        )
        return MomentPosterior(denoiser, moments, kind)

    # -- one step ------------------------------------------------------------------------------------------------

    def _guided(
        self,
        energy: Energy | None,
        beta: float,
        guidance: Component,
        posterior: Component | None,
        support: Support | None,
        rule: Component | None,
        omega: float,
        clip_x0: bool | Component,
        c: Context,
    ) -> Denoiser:
        """Make the guided denoiser of a call's arguments."""
        if self.unet.config.get("out_channels") not in (None, self.unet.config.in_channels):
            raise ValueError("the UNet predicts variances beside the mean; guide one with as many channels out as in")
        denoiser, schedule = self.denoiser(clip_x0=clip_x0), self.schedule
        basic = {"denoiser": denoiser, "schedule": schedule}
        support = None if support is None else checked_support(support, self._event(), bounded=clip_x0 is not False)
        parts = {**basic, "energy": energy, "beta": beta, "support": support, "posterior": _posterior(posterior, basic)}
        timed = prepare(_timed_energy(guidance, {k: v for k, v in parts.items() if v is not None}), c)
        return _bounded(guide(denoiser, timed, _rule(rule, omega), schedule), clip_x0)

    # -- around the steps ----------------------------------------------------------------------------------------

    def _event(self) -> tuple[int, int, int]:
        """Return the shape of the UNet's images. Raises ValueError where its config has none."""
        size = self.unet.config.sample_size
        if size is None:
            raise ValueError("the UNet's config has no sample_size; set it: unet.register_to_config(sample_size=64)")
        height, width = (size, size) if isinstance(size, int) else size
        return self.unet.config.in_channels, height, width

    def _finish(self, image: Tensor, output_type: str) -> Any:
        """Convert images to the output type."""
        if output_type == "latent":
            return image
        image = (image / 2 + 0.5).clamp(0, 1)
        if output_type == "pt":
            return image
        image = image.float() if image.dtype == torch.bfloat16 else image  # numpy has none
        array = image.cpu().permute(0, 2, 3, 1).numpy()
        return self.numpy_to_pil(array) if output_type == "pil" else array


def _bounded(denoiser: Denoiser, bound: bool | Component) -> Denoiser:
    """Wrap a denoiser by its bound on x_0."""
    if isinstance(bound, bool):
        return Clip(denoiser, -1.0, 1.0) if bound else denoiser
    parts = {"denoiser": denoiser, "low": -1.0, "high": 1.0}
    wrapped: Denoiser = bound(denoiser) if callable(bound) else build(WRAPPERS, Spec.of(bound, "clip_x0"), parts, "clip_x0")
    return wrapped


def _context(context: Mapping[str, Tensor] | None, labels: Tensor | None) -> Context:
    """Combine context and class labels."""
    if context is None and labels is None:
        return None
    return {**(context or {}), **({} if labels is None else {"class_labels": labels})}


def _posterior(posterior: Component | None, parts: Mapping[str, Any]) -> Posterior | None:
    if posterior is None or callable(posterior):
        return posterior
    built: Posterior = build(POSTERIORS, Spec.of(posterior, "posterior"), parts, "posterior")
    return built


def _rule(rule: Component | None, omega: float) -> GuidanceRule:
    if rule is None:
        return Additive(omega)
    if callable(rule):
        return rule
    built: GuidanceRule = build(RULES, Spec.of(rule, "rule"), {"omega": omega}, "rule")
    return built


def _timed_energy(guidance: Component, parts: Mapping[str, Any]) -> TimedEnergy:
    """Make the timed energy. Raises ValueError for parts that are missing or unknown."""
    if callable(guidance):
        others = {n for n, p in parameters(guidance).items() if p.default is p.empty} - UNCALIBRATED_PARTS
        if others:
            known = ", ".join(sorted(UNCALIBRATED_PARTS))
            raise ValueError(
                f"guidance is made of {known}, and this one wants {', '.join(sorted(others))}; is it a timed energy itself? "
                "then pass guidance=lambda: mine"
            )
        timed: TimedEnergy = guidance(**{name: parts[name] for name in parameters(guidance) if name in parts})
        return timed
    spec = Spec.of(guidance, "guidance")
    missing = wanted_parts(ENERGIES, spec, UNCALIBRATED_PARTS, "guidance") - set(parts)
    if "posterior" in missing:
        raise ValueError(f"'{spec.name}' needs a posterior: pass posterior=pipe.calibrate(images)")
    if "support" in missing:
        raise ValueError(f"'{spec.name}' needs samples of the data: pass support=lambda c, k: images (B, k, C, H, W)")
    built: TimedEnergy = build(ENERGIES, spec, parts, "guidance")
    return built
