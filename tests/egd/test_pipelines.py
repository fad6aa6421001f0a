"""The diffusers pipeline: nothing changed without an energy, the exact target with one, for any scheduler."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import ConfigMixin, ModelMixin, UNet2DModel
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.deprecated.scheduling_karras_ve import KarrasVeScheduler
from torch import Tensor

import egd
from egd.errors import UserError
from egd.guidance import apply_rule
from egd.mixtures import GaussianMixture, Quadratic
from egd.pipelines.guided import EnergyGuidedPipeline
from egd.posteriors import IsotropicGaussian
from egd.samplers.watching import SamplingWarning, watching
from egd.schedules import from_diffusers
from egd.schedules.stepping import SchedulerSteps, check_guidable
from egd.tensors import value_and_grad

SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddpm": ("DDPMScheduler", {"clip_sample": False}),
    "ddim": ("DDIMScheduler", {"clip_sample": False}),
    "ddim_v": ("DDIMScheduler", {"clip_sample": False, "prediction_type": "v_prediction"}),
    "ddim_sample": ("DDIMScheduler", {"clip_sample": False, "prediction_type": "sample"}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),
    "dpm": ("DPMSolverMultistepScheduler", {}),
    "dpm_karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "dpm_v": ("DPMSolverMultistepScheduler", {"prediction_type": "v_prediction"}),
    "dpm_flow": ("DPMSolverMultistepScheduler", {"prediction_type": "flow_prediction", "use_flow_sigmas": True}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "deis": ("DEISMultistepScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_karras_v": ("EulerDiscreteScheduler", {"use_karras_sigmas": True, "prediction_type": "v_prediction"}),
    "euler_ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {"beta_start": 0.0001, "beta_end": 0.02}),
    "kdpm2": ("KDPM2DiscreteScheduler", {"beta_start": 0.0001, "beta_end": 0.02}),
    "edm": ("EDMEulerScheduler", {}),
    "edm_v": ("EDMEulerScheduler", {"prediction_type": "v_prediction"}),
    "edm_dpm": ("EDMDPMSolverMultistepScheduler", {}),
    "flow": ("FlowMatchEulerDiscreteScheduler", {}),
    "flow_shift": ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    "flow_heun": ("FlowMatchHeunDiscreteScheduler", {}),
    "flow_dynamic": ("FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True}),
    "flow_dynamic_linear": ("FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True, "time_shift_type": "linear"}),
    "ddim_trailing": ("DDIMScheduler", {"clip_sample": False, "timestep_spacing": "trailing"}),
    "ddim_linspace": ("DDIMScheduler", {"clip_sample": False, "timestep_spacing": "linspace"}),
    "ddim_zero_snr": (
        "DDIMScheduler",
        {
            "clip_sample": False,
            "timestep_spacing": "trailing",
            "rescale_betas_zero_snr": True,
            "prediction_type": "v_prediction",
        },
    ),
    "ddim_parallel": ("DDIMParallelScheduler", {"clip_sample": False}),
    "ddpm_parallel": ("DDPMParallelScheduler", {"clip_sample": False}),
    "cogvideox": ("CogVideoXDDIMScheduler", {"clip_sample": False}),
    "singlestep": ("DPMSolverSinglestepScheduler", {}),
    "sa": ("SASolverScheduler", {}),
    "tcd": ("TCDScheduler", {}),
    "unclip": ("UnCLIPScheduler", {"clip_sample": False}),
    "euler_leading": ("EulerDiscreteScheduler", {"timestep_spacing": "leading"}),
    "heun_leading": ("HeunDiscreteScheduler", {"beta_start": 0.0001, "beta_end": 0.02, "timestep_spacing": "leading"}),
    "lms_leading": ("LMSDiscreteScheduler", {"timestep_spacing": "leading"}),
    "kdpm2_ancestral": ("KDPM2AncestralDiscreteScheduler", {"beta_start": 0.0001, "beta_end": 0.02}),
}
CONSISTENCY, PROCESS = "consistency models", "has neither alphas_cumprod"
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "AmusedScheduler": ({"mask_token_id": 1}, "discrete tokens"),
    "BlockRefinementScheduler": ({}, "discrete tokens"),
    "CMStochasticIterativeScheduler": ({}, CONSISTENCY),
    "CogVideoXDPMScheduler": ({}, "its step needs old_pred_original_sample, timestep_back"),
    "DDIMInverseScheduler": ({}, "timesteps rise, from an image to noise"),
    "DDPMWuerstchenScheduler": ({}, PROCESS),
    "DPMSolverMultistepInverseScheduler": ({}, "timesteps rise, from an image to noise"),
    "DiscreteDDIMScheduler": ({}, "discrete tokens"),
    "EntropyBoundScheduler": ({}, "discrete tokens"),
    "FlowMapEulerDiscreteScheduler": ({}, PROCESS),
    "FlowMatchLCMScheduler": ({}, CONSISTENCY),
    "HeliosDMDScheduler": ({}, "runs in stages"),
    "HeliosScheduler": ({}, "runs in stages"),
    "IPNDMScheduler": ({}, PROCESS),
    "KarrasVeScheduler": ({}, "no ConfigMixin of diffusers"),
    "LCMScheduler": ({}, CONSISTENCY),
    "LTXEulerAncestralRFScheduler": ({}, PROCESS),
    "MiniMaxH3Scheduler": ({}, PROCESS),
    "PiflowScheduler": ({}, PROCESS),
    "RFD4ProteinaScheduler": (
        {"schedule_mode": "log", "noise_mode": "1/t", "tsr_k": 1.0, "tsr_sigma": 1.0},
        "its step needs emit_mask",
    ),
    "RePaintScheduler": ({}, "its step needs original_image, mask"),
    "SCMScheduler": ({}, "no sigma_min and sigma_max"),
    "ScoreSdeVeScheduler": ({}, "no set_timesteps.* and step"),
    "VQDiffusionScheduler": ({"num_vec_classes": 5}, "discrete tokens"),
}
UNAVAILABLE = {"CosineDPMSolverMultistepScheduler", "DPMSolverSDEScheduler"}  # they need torchsde
MEAN, VAR, SIDE = 0.1, 0.04, 4


@pytest.fixture(autouse=True)
def float32(float64: None) -> None:
    """What diffusers is made for: its UniPC fails where float64 is the default."""
    torch.set_default_dtype(torch.float32)


def scheduler(name: str) -> Any:
    kind, settings = SCHEDULERS[name]
    return getattr(diffusers, kind)(**settings)


@cache
def product(name: str) -> Tensor:
    """alpha_bar of a VP scheduler."""
    return getattr(scheduler(name), "alphas_cumprod", torch.ones(1)).double()


class GaussianUNet(ModelMixin, ConfigMixin):
    """What a perfect UNet says when the images are N(mean, var I); written in each family's own formulas."""

    @register_to_config
    def __init__(
        self, scheduler: str, mean: float = MEAN, var: float = VAR, in_channels: int = 1, sample_size: int = SIDE
    ) -> None:
        super().__init__()
        self.mean, self.var = mean, var
        self.dummy = torch.nn.Parameter(torch.zeros(()))
        kind, settings = SCHEDULERS[scheduler]
        self.family = "edm" if kind.startswith("EDM") else "flow" if "low" in kind or "use_flow_sigmas" in settings else "vp"
        self.prediction = settings.get("prediction_type", "epsilon")
        self.product = product(scheduler)

    def forward(self, x: Tensor, timestep: Any, class_labels: Tensor | None = None) -> SimpleNamespace:
        t = torch.as_tensor(timestep).to(x).reshape(-1, 1, 1, 1)
        answer = {"vp": self.vp, "flow": self.flow, "edm": self.edm}[self.family](x, t)
        return SimpleNamespace(sample=answer)

    def vp(self, x: Tensor, t: Tensor) -> Tensor:
        lam = 0.5 * (self.product / (1 - self.product)).log()
        left = t.floor().long().clamp(max=998)
        share = (t - left).double()
        to_noise = lam[left] + (1 - share).log()  # the last interval at zero terminal SNR: alpha / sigma is linear
        at = torch.where(lam[left + 1].isinf(), to_noise, torch.lerp(lam[left], lam[left + 1], share)).to(x)
        a, s = torch.sigmoid(2 * at).sqrt(), torch.sigmoid(-2 * at).sqrt()
        x0 = self.x0(x, a, s)
        eps = (x - a * x0) / s
        return {"epsilon": eps, "sample": x0, "v_prediction": a * eps - s * x0}[self.prediction]

    def flow(self, x: Tensor, t: Tensor) -> Tensor:
        s = t / 1000
        return (x - self.x0(x, 1 - s, s)) / s

    def edm(self, x: Tensor, t: Tensor) -> Tensor:
        s, data = torch.exp(4 * t), 0.5
        y = x * (s**2 + data**2).sqrt()  # c_in undone
        skip, out = data**2 / (s**2 + data**2), s * data / (s**2 + data**2).sqrt()
        sign = -1 if self.prediction == "v_prediction" else 1
        return sign * (self.x0(y, torch.ones_like(s), s) - skip * y) / out

    def x0(self, x: Tensor, a: Tensor, s: Tensor) -> Tensor:
        return self.mean + a * self.var / (a**2 * self.var + s**2) * (x - a * self.mean)


def exact_posterior(pipe: EnergyGuidedPipeline) -> Callable[..., IsotropicGaussian]:
    schedule = pipe.schedule

    def posterior(x: Tensor, t: Tensor, c: Any = None) -> IsotropicGaussian:
        a, s = schedule.alpha(t), schedule.sigma(t)
        mean = pipe.unet.x0(x, a.reshape(-1, 1, 1, 1), s.reshape(-1, 1, 1, 1))
        return IsotropicGaussian(mean, VAR * s**2 / (a**2 * VAR + s**2))

    return posterior


def quiet(pipe: EnergyGuidedPipeline) -> EnergyGuidedPipeline:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def gaussian(name: str, mean: float = MEAN, var: float = VAR) -> EnergyGuidedPipeline:
    return quiet(EnergyGuidedPipeline(GaussianUNet(name, mean, var), scheduler(name)))


@pytest.fixture
def unet() -> UNet2DModel:
    torch.manual_seed(1)
    return UNet2DModel(
        sample_size=4,
        in_channels=1,
        out_channels=1,
        block_out_channels=(4, 8),
        layers_per_block=1,
        norm_num_groups=2,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        num_class_embeds=3,
    ).eval()


@pytest.fixture
def plain_unet() -> UNet2DModel:
    torch.manual_seed(1)
    return UNet2DModel(
        sample_size=4,
        in_channels=1,
        out_channels=1,
        block_out_channels=(4, 8),
        layers_per_block=1,
        norm_num_groups=2,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    ).eval()


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def quadratic(target: float, curvature: float) -> Callable[..., Tensor]:
    return lambda x0, c=None: 0.5 * curvature * (x0 - target).square().flatten(1).sum(1)


@pytest.mark.parametrize("kind", ["DDPM", "DDIM"])
def test_without_an_energy_it_is_the_pipeline_of_diffusers(kind: str, plain_unet: UNet2DModel) -> None:
    s = getattr(diffusers, f"{kind}Scheduler")()
    theirs = quiet(getattr(diffusers, f"{kind}Pipeline")(plain_unet, s))
    ours = quiet(EnergyGuidedPipeline(plain_unet, s))
    settings = {"batch_size": 3, "num_inference_steps": 7, "output_type": "np"}
    assert np.array_equal(ours(generator=seeded(), **settings).images, theirs(generator=seeded(), **settings).images)
    (picture,) = ours(generator=seeded(), num_inference_steps=2).images
    assert picture.size == (4, 4)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_an_energy_that_is_zero_changes_no_step(name: str, plain_unet: UNet2DModel) -> None:
    """There and back: the UNet's output to x_0, guided by nothing, to the scheduler's prediction again."""
    pipe = quiet(EnergyGuidedPipeline(plain_unet, scheduler(name)))
    seen: dict[str, list[Tensor]] = {"plain": [], "guided": []}

    def keep(key: str) -> Callable[..., dict[str, Any]]:
        return lambda pipe, i, t, tensors: seen[key].append(tensors["image"]) or {}

    settings = {"batch_size": 2, "num_inference_steps": 6, "clip_x0": False, "output_type": "pt"}
    pipe(generator=seeded(), callback_on_step_end=keep("plain"), **settings)
    pipe(generator=seeded(), callback_on_step_end=keep("guided"), energy=quadratic(0, 0), **settings)
    # flow starts at alpha = 0, where the limit of guidance is taken; with Karras' spacing diffusers rounds the timestep
    tolerance = 0.05 if "flow" in name or "karras" in name else 1e-3
    for plain, guided in zip(seen["plain"], seen["guided"], strict=True):
        torch.testing.assert_close(guided / plain.std(), plain / plain.std(), atol=tolerance, rtol=0)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_exact_energy_makes_of_a_unet_the_unet_of_the_target(name: str) -> None:
    """Sample for sample: the images guided by the exact E_t are those of a UNet trained on the target itself."""
    pipe, wanted, k = gaussian(name), 0.5, 10.0
    posterior = exact_posterior(pipe)

    def exact(x: Tensor, t: Tensor, c: Any = None) -> Tensor:
        q = posterior(x, t)  # E_t of k/2 ||x_0 - wanted||^2, less a function of t
        return 0.5 * k * (q.mean - wanted).square().flatten(1).sum(1) / (1 + k * q.var)

    precision = 1 / VAR + k
    target = gaussian(name, (MEAN / VAR + k * wanted) / precision, 1 / precision)
    settings = {"batch_size": 200, "num_inference_steps": 30, "output_type": "pt"}
    guided = pipe(guidance=lambda: exact, generator=seeded(), **settings).images
    torch.testing.assert_close(guided, target(generator=seeded(), **settings).images, atol=5e-3, rtol=0)
    assert float(2 * guided.mean() - 1) == pytest.approx(target.unet.mean, abs=0.02)


def test_every_scheduler_of_diffusers_is_guided_or_refused() -> None:
    known = {n for n in dir(diffusers) if n.endswith("Scheduler")}
    guided = {kind for kind, _ in SCHEDULERS.values()}
    assert guided | set(REFUSED) | UNAVAILABLE == known and not guided & set(REFUSED)


def test_the_documented_table_of_schedulers_is_true() -> None:
    text = Path("docs/schedules.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`\w+Scheduler`.*) \| (yes|no|they need).*\|$", text, re.MULTILINE)
    found = {name: answer for names, answer in rows for name in re.findall(r"\w+Scheduler", names)}
    want = {kind: "yes" for kind, _ in SCHEDULERS.values()} | dict.fromkeys(REFUSED, "no")
    assert found == want | dict.fromkeys(UNAVAILABLE, "they need")


@pytest.mark.parametrize("kind", REFUSED)
def test_a_scheduler_that_cannot_be_guided_is_refused_with_the_reason(kind: str) -> None:
    settings, reason = REFUSED[kind]
    pipe = quiet(EnergyGuidedPipeline(GaussianUNet("ddim"), scheduler("ddim")))
    pipe.scheduler = getattr(diffusers, kind)(**settings)
    with pytest.raises(UserError, match=f"{kind}.*{reason}"):
        pipe(energy=quadratic(0.5, 1.0), num_inference_steps=5)


def test_the_deprecated_karras_ve_is_refused_with_the_reason() -> None:
    pipe = gaussian("ddim")
    pipe.scheduler = KarrasVeScheduler()
    with pytest.raises(UserError, match="KarrasVeScheduler cannot be guided: its step needs sigma_hat, sigma_prev, sample_hat"):
        pipe(energy=quadratic(0.5, 1.0), num_inference_steps=5)


def test_a_noise_prediction_without_signal_is_refused() -> None:
    """At zero terminal SNR x_1 is the noise itself: x_0 is not determined by it."""
    pipe = gaussian("ddim")
    pipe.scheduler = diffusers.DDIMScheduler(rescale_betas_zero_snr=True, timestep_spacing="trailing")
    with pytest.raises(UserError, match="steps end in values that are not finite"):
        pipe(energy=quadratic(0.5, 1.0), num_inference_steps=5)


def test_dropout_that_is_on_is_pointed_out(plain_unet: UNet2DModel) -> None:
    plain_unet.mid_block.resnets[0].dropout.p = 0.5
    settings = {"num_inference_steps": 1, "output_type": "pt", "energy": quadratic(0.5, 1.0)}
    with pytest.warns(UserWarning, match=r"call unet\.eval\(\)"):
        quiet(EnergyGuidedPipeline(plain_unet.train(), scheduler("ddim")))(**settings)


def test_a_flow_that_renoises_as_consistency_models_do_is_refused() -> None:
    pipe = gaussian("flow")
    pipe.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(stochastic_sampling=True)
    with pytest.raises(UserError, match=r"standard deviation 0\.2"):
        pipe(energy=quadratic(0.5, 1.0), num_inference_steps=5)


@pytest.mark.parametrize("kind", ["Euler", "Heun", "LMS", "EulerAncestral", "KDPM2"])
def test_the_first_noise_is_that_of_the_steps_asked_for_and_equal_every_time(kind: str) -> None:
    """init_noise_sigma depends on the steps with leading spacing: 5.2 for 5 of them, where 1000 give 14.6."""
    pipe, seen = gaussian("euler"), []

    def keep(x0: Tensor, t: Tensor, c: Any = None) -> Tensor:
        seen.append(x0)
        return x0.flatten(1).sum(1)

    own = getattr(diffusers, f"{kind}DiscreteScheduler")(timestep_spacing="leading", beta_start=0.0001, beta_end=0.02)
    pipe.scheduler = own
    settings = {"batch_size": 300, "guidance": lambda: keep, "num_inference_steps": 5, "output_type": "latent"}
    first = pipe(generator=seeded(), **settings).images
    x_t, sigma = seen[0], 5.15  # sigma / alpha at timestep 800
    assert float(x_t.detach().std()) == pytest.approx(sigma / (1 + sigma**2) ** 0.5, rel=0.02)
    pipe(generator=seeded(), **{**settings, "num_inference_steps": 3})
    assert torch.equal(pipe(generator=seeded(), **settings).images, first)
    assert len(own.timesteps) == 1000 or own.num_inference_steps != 5  # the user's scheduler is not stepped


def test_mu_shifts_a_dynamic_flow_and_is_refused_elsewhere() -> None:
    pipe = gaussian("flow_dynamic")
    settings = {"batch_size": 50, "energy": quadratic(0.5, 10.0), "num_inference_steps": 5, "output_type": "pt"}
    plain, same, shifted = (pipe(generator=seeded(), mu=mu, **settings).images for mu in (None, 0.0, 1.15))
    assert torch.equal(plain, same) and not torch.equal(plain, shifted)
    with pytest.raises(ValueError, match=r"mu = 1\.15, and DDIMScheduler has no dynamic shift"):
        gaussian("ddim")(mu=1.15, num_inference_steps=2)


def test_output_types() -> None:
    pipe = gaussian("ddim")
    settings = {"batch_size": 40, "num_inference_steps": 5}
    run = lambda kind: pipe(generator=seeded(), output_type=kind, **settings).images  # noqa: E731
    latent = run("latent")
    assert latent.shape == (40, 1, SIDE, SIDE) and float(latent.min()) < 0
    assert torch.equal(run("pt"), (latent / 2 + 0.5).clamp(0, 1))
    assert np.array_equal(run("np"), run("pt").permute(0, 2, 3, 1).numpy())
    assert run("pil")[0].size == (SIDE, SIDE)
    with pytest.raises(ValueError, match="output_type is one of pil, np, pt, latent; got 'PIL'"):
        run("PIL")


def test_a_step_callback_may_return_nothing_or_another_image() -> None:
    pipe = gaussian("ddim")
    settings = {"batch_size": 2, "num_inference_steps": 3, "output_type": "latent"}
    run = lambda f=None: pipe(generator=seeded(), callback_on_step_end=f, **settings).images  # noqa: E731
    assert torch.equal(run(lambda *a: None), run())
    half = lambda p, i, t, tensors: {"image": torch.full_like(tensors["image"], 0.5)}  # noqa: E731
    assert torch.equal(run(half), torch.full((2, 1, SIDE, SIDE), 0.5))
    with pytest.raises(ValueError, match=r"returns None or .*got \['latents'\]"):
        run(lambda p, i, t, tensors: {"latents": tensors["image"]})
    with pytest.raises(ValueError, match=r"'image' is of shape \(2, 1, 4, 4\); got \(1, 4, 4\)"):
        run(lambda p, i, t, tensors: {"image": tensors["image"][0]})


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"batch_size": 0}, "batch_size is a whole number"),
        ({"num_inference_steps": 2.5}, "num_inference_steps is a whole number"),
        ({"beta": float("nan")}, "beta is a finite number"),
        ({"omega": float("inf")}, "omega is a finite number"),
        ({"eta": -1.0}, "eta is a number from 0 to 1"),
        ({"generator": [torch.Generator()]}, "generator is one, or a list of one for each of 2 images"),
        ({"generator": 3}, "generator is a torch.Generator"),
        ({"class_labels": torch.zeros(1, dtype=torch.long)}, r"class_labels is a tensor with one row for each of 2 images"),
        ({"context": {"y": torch.zeros(3)}}, r"context\['y'\] is a tensor with one row for each of 2 images; got \(3,\)"),
    ],
)
def test_an_argument_that_makes_no_sense_is_named(bad: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        gaussian("ddim")(**{"batch_size": 2, "num_inference_steps": 2, **bad})


@pytest.mark.parametrize(("name", "steps"), [("unclip", 1), ("kdpm2_ancestral", 2)])
def test_a_number_of_steps_that_a_scheduler_cannot_take_is_named(name: str, steps: int) -> None:
    with pytest.raises(ValueError, match=f"Scheduler cannot take num_inference_steps = {steps}"):
        gaussian(name)(energy=quadratic(0, 1), num_inference_steps=steps)


def test_a_scheduler_that_starts_with_runge_kutta_steps_names_too_few() -> None:
    with pytest.raises(ValueError, match="PNDMScheduler cannot take num_inference_steps = 3"):
        SchedulerSteps(diffusers.PNDMScheduler(), None, 3)


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (torch.zeros(9, 1, 4, 4, dtype=torch.uint8), r"expected floating images in \[-1, 1\], got torch.uint8"),
        (torch.full((9, 1, 4, 4), 200.0), r"expected images in \[-1, 1\], got values from 200"),
        (torch.full((9, 1, 4, 4), torch.nan), "expected finite images"),
        (torch.zeros(9, 3, 4, 4), r"expected \(..., 1, 4, 4\), got \(.*9, 3, 4, 4\)"),
        (torch.zeros(1, 4, 4), r"expected \(N, C, H, W\)"),
    ],
)
def test_images_on_another_scale_are_refused(images: Tensor, said: str) -> None:
    pipe = gaussian("ddim")
    with pytest.raises(ValueError, match=said):
        pipe.calibrate(images)
    if images.ndim == 4:
        settings = {"energy": quadratic(0, 1), "guidance": "support_samples", "num_inference_steps": 2}
        with pytest.raises(ValueError, match=f"support: {said}"):
            pipe(support=lambda c, k: images[None], **settings)


def test_images_between_0_and_1_are_pointed_out() -> None:
    with pytest.warns(UserWarning, match=r"no value is below 0; from \[0, 1\] write 2 \* images - 1"):
        gaussian("ddim").calibrate(torch.rand(9, 1, 4, 4), grid=2, samples=4)


MIXTURE = GaussianMixture(torch.tensor([0.3, 0.7]).log(), torch.tensor([[-0.6], [0.4]]), torch.tensor([[[0.02]], [[0.05]]]))


@pytest.mark.parametrize("name", ["ddim", "unipc", "euler_leading", "heun_leading", "unclip", "edm", "flow", "sa"])
def test_a_tilted_mixture_is_sampled_with_its_weights_and_moments(name: str) -> None:
    """A quadratic energy tilts two modes: which of them a sample belongs to is decided on the way."""
    own = scheduler(name)
    run = SchedulerSteps(own, check_guidable(own), 60)
    energy = Quadratic(torch.tensor([[1.0]]), torch.tensor([-1.0]))
    want = MIXTURE.tilted(energy, 1.0)

    def exact(x: Tensor, t: Tensor, c: Any = None) -> Tensor:
        x0 = MIXTURE.denoise(run.schedule, x.flatten(1), t)
        grad = value_and_grad(lambda x: MIXTURE.energy(run.schedule, energy, 1.0, x, t), x.flatten(1))[1]
        return apply_rule(x0, grad, egd.Additive(1.0), run.schedule, x.flatten(1), t).reshape(x.shape)

    g = seeded()
    x = torch.randn(4000, 1, 1, 1, generator=g) * run.noise_std
    for i, timestep in enumerate(run.timesteps):
        x = run.step(run.guided_output(exact, x, timestep), i, x, g)
    target = want.sample(200_000, seeded(1))
    assert float(x.mean()) == pytest.approx(float(target.mean()), abs=0.04)
    assert float(x.std()) == pytest.approx(float(target.std()), rel=0.08)
    assert float((x < -0.1).float().mean()) == pytest.approx(float((target < -0.1).float().mean()), abs=0.05)
    assert abs(float(target.mean()) - float(MIXTURE.sample(100_000, seeded(2)).mean())) > 0.15  # it is another distribution


def test_second_order_with_the_exact_posterior_is_exact_for_gaussian_images() -> None:
    pipe = gaussian("dpm")
    settings = {"batch_size": 200, "num_inference_steps": 40, "output_type": "pt", "beta": 2.0}
    guided = {"energy": quadratic(0.5, 5.0), "guidance": "second_order", "posterior": exact_posterior(pipe)}
    x = 2 * pipe(generator=seeded(), **settings, **guided).images - 1
    assert float(x.mean()) == pytest.approx((MEAN / VAR + 10 * 0.5) / (1 / VAR + 10), abs=0.01)


@pytest.mark.parametrize("name", ["ddpm", "ddim", "dpm", "unipc", "heun", "edm", "flow"])
def test_dps_comes_much_nearer_to_what_is_wanted_than_no_guidance(name: str) -> None:
    pipe, energy = gaussian(name), quadratic(0.5, 20.0)
    settings = {"batch_size": 100, "num_inference_steps": 30, "output_type": "pt"}
    plain, guided = (2 * pipe(energy=e, beta=2.0, generator=seeded(), **settings).images - 1 for e in (None, energy))
    assert float(plain.mean()) == pytest.approx(MEAN, abs=0.02)
    assert float(energy(guided).mean()) < 0.25 * float(energy(plain).mean())


def test_the_denoiser_is_exact_at_times_between_the_steps() -> None:
    for name in ("ddpm", "ddim_v", "edm", "flow"):
        pipe = gaussian(name)
        x, t = torch.randn(5, 1, 4, 4), torch.linspace(0.0503, 0.9, 5)
        want = exact_posterior(pipe)(x, t).mean
        torch.testing.assert_close(pipe.denoiser(clip_x0=False)(x, t, None), want, atol=1e-3, rtol=1e-3)


def test_calibrate_finds_the_posterior_variance() -> None:
    pipe = gaussian("ddpm")
    images = MEAN + VAR**0.5 * torch.randn(2000, 1, 4, 4)
    posterior = pipe.calibrate(images, samples=500, grid=40)
    t = torch.tensor([0.1, 0.3, 0.6])
    found = posterior(torch.zeros(3, 1, 4, 4), t, None).quadratic(torch.full((3, 1, 4, 4), 0.25))
    want = exact_posterior(pipe)(torch.zeros(3, 1, 4, 4), t).var
    torch.testing.assert_close(found.double(), want.double(), rtol=0.1, atol=0)


def test_a_saved_pipeline_loads_and_so_does_one_of_diffusers(tmp_path: Path, unet: UNet2DModel) -> None:
    pipe = quiet(EnergyGuidedPipeline(unet, scheduler("dpm")))
    pipe.save_pretrained(tmp_path / "ours")
    diffusers.DDPMPipeline(unet, scheduler("ddpm")).save_pretrained(tmp_path / "theirs")
    again = quiet(EnergyGuidedPipeline.from_pretrained(tmp_path / "ours"))
    labels = torch.tensor([0, 2])
    settings = {"batch_size": 2, "num_inference_steps": 4, "class_labels": labels, "output_type": "pt"}
    settings |= {"energy": quadratic(0.3, 1.0), "guidance": {"name": "dps"}}
    assert torch.equal(pipe(generator=seeded(), **settings).images, again(generator=seeded(), **settings).images)
    theirs = EnergyGuidedPipeline.from_pretrained(tmp_path / "theirs")
    assert isinstance(theirs, EnergyGuidedPipeline) and type(theirs.scheduler).__name__ == "DDPMScheduler"


def test_energies_see_the_context_and_the_unet_its_labels(unet: UNet2DModel) -> None:
    seen: list[Mapping[str, Tensor]] = []

    def energy(x0: Tensor, c: Mapping[str, Tensor]) -> Tensor:
        seen.append(c)
        return 20 * x0.flatten(1).sum(1) * c["sign"]

    settings = {"batch_size": 2, "num_inference_steps": 5, "class_labels": torch.tensor([1, 1]), "output_type": "pt"}
    signs = {"sign": torch.tensor([1.0, -1.0])}
    low, high = gaussian("ddim")(energy=energy, context=signs, generator=seeded(), **settings).images
    assert low.mean() < high.mean() - 0.2
    assert {k: v.tolist() for k, v in seen[0].items()} == {"sign": [1, -1], "class_labels": [1, 1]}
    pipe = quiet(EnergyGuidedPipeline(unet, scheduler("ddim")))
    plain = pipe(generator=seeded(), **settings).images
    other = pipe(generator=seeded(), **{**settings, "class_labels": torch.tensor([0, 1])}).images
    assert not torch.equal(other[0], plain[0]) and torch.allclose(other[1], plain[1])
    guided = {"energy": lambda x0, c: 0 * x0.flatten(1).sum(1), "clip_x0": False}
    torch.testing.assert_close(pipe(generator=seeded(), **settings, **guided).images, plain, atol=1e-3, rtol=0)


def test_guidance_rule_and_posterior_may_be_names_settings_or_objects() -> None:
    pipe, energy = gaussian("ddim"), quadratic(0.5, 20.0)
    settings = {"batch_size": 4, "num_inference_steps": 5, "output_type": "pt", "energy": energy}
    run = lambda **more: pipe(generator=seeded(), **settings, **more).images  # noqa: E731
    assert torch.equal(run(guidance="dps"), run(guidance=egd.DPS))
    posterior = exact_posterior(pipe)
    spread = run(guidance={"name": "first_order", "variance": True}, posterior=posterior)
    assert not torch.equal(spread, run(guidance={"name": "first_order", "variance": False}, posterior=posterior))
    tweedie = run(guidance="first_order", posterior={"name": "tweedie", "covariance": "trace"})
    torch.testing.assert_close(tweedie, spread, atol=1e-2, rtol=0)
    assert torch.equal(run(rule={"name": "rescaled"}), run(rule=egd.rules.Rescaled()))
    assert torch.equal(run(omega=0.5), run(rule=egd.Additive(0.5)))
    assert torch.equal(run(omega=0.5), run(guidance_scale=0.5))
    with pytest.raises(ValueError, match="give one of them"):
        run(omega=1.0, guidance_scale=2.0)
    support = lambda c, k: MEAN + VAR**0.5 * torch.randn(1, k, 1, 4, 4, generator=seeded(1))  # noqa: E731
    assert run(guidance={"name": "support_samples", "samples": 50}, support=support).mean() > run(omega=0.0).mean()


def test_a_trained_timed_energy_needs_no_energy() -> None:
    pipe = gaussian("ddim")
    network = lambda x, t, c=None: -50 * x.flatten(1).sum(1)  # noqa: E731
    settings = {"batch_size": 4, "num_inference_steps": 5, "output_type": "pt"}
    pushed = pipe(guidance=lambda: network, generator=seeded(), **settings).images
    assert pushed.mean() > pipe(generator=seeded(), **settings).images.mean() + 0.1


def test_what_is_missing_or_misspelt_is_said() -> None:
    pipe = gaussian("ddim")
    with pytest.raises(ValueError, match=r"wants t, x; is it a timed energy itself\? then pass guidance=lambda: mine"):
        pipe(guidance=lambda x, t, c=None: x.flatten(1).sum(1))
    with pytest.raises(ValueError, match=r"posterior=pipe\.calibrate"):
        pipe(energy=quadratic(0, 1), guidance="first_order")
    with pytest.raises(ValueError, match="support="):
        pipe(energy=quadratic(0, 1), guidance="support_samples")
    with pytest.raises(UserError, match="did you mean 'first_order'"):
        pipe(energy=quadratic(0, 1), guidance="frist_order")
    with pytest.raises(UserError, match="no setting 'omga'"):
        pipe(energy=quadratic(0, 1), rule={"name": "additive", "omga": 1})


@pytest.mark.parametrize(
    ("energy", "said"),
    [
        (lambda x0, c: x0.flatten(1).sum(1, keepdim=True), r"gave the shape \(2, 1\) for 2 rows"),
        (lambda x0, c: x0.sum(), "one number a row"),
        (lambda x0, c: (x0 > 0).flatten(1).sum(1), "whole numbers"),
        (lambda x0, c: x0.flatten(1).sum(1).log(), "gives .*nan.* for images in"),
        (lambda x0, c: x0.flatten(1).sum(1) + c["shift"] * torch.inf, "gives .*inf.* for images in"),
    ],
)
def test_an_energy_is_tried_on_two_images_before_anything_is_sampled(energy: Any, said: str) -> None:
    settings = {"batch_size": 3, "context": {"shift": torch.ones(3)}}
    with pytest.raises(ValueError, match=said):
        gaussian("ddim")(energy=energy, num_inference_steps=1000, **settings)


def test_sampling_is_watched() -> None:
    pipe, settings = gaussian("ddim"), {"batch_size": 3, "num_inference_steps": 4, "output_type": "pt"}
    with warnings.catch_warnings(), watching() as watch:
        warnings.simplefilter("error")
        pipe(energy=quadratic(0.0, 1.0), generator=seeded(), **settings)
    assert watch.metrics() == {"off_scale": 0.0} and watch.rows == 3
    with pytest.warns(SamplingWarning, match="never pushed"):
        pipe(energy=lambda x0, c: x0.round().flatten(1).sum(1), generator=seeded(), **settings)
    with pytest.warns(SamplingWarning, match="samples have left the data's scale"), watching() as watch:
        pipe(energy=quadratic(1e9, 1e3), clip_x0=False, generator=seeded(), **settings)
    assert watch.metrics()["off_scale"] == 1


def test_half_precision_weights_are_guided(plain_unet: UNet2DModel) -> None:
    pipe = quiet(EnergyGuidedPipeline(plain_unet.to(torch.bfloat16), scheduler("dpm")))
    images = pipe(batch_size=2, energy=quadratic(0.5, 1.0), num_inference_steps=4, output_type="np").images
    assert images.shape == (2, 4, 4, 1) and np.isfinite(images).all()


def test_its_schedule_is_the_schedulers() -> None:
    s = scheduler("ddpm")
    pipe = EnergyGuidedPipeline(GaussianUNet("ddpm"), s)
    t = torch.tensor([0.25])
    assert torch.equal(pipe.schedule.alpha(t), from_diffusers(s).alpha(t))
