"""The diffusers pipeline: nothing changed without an energy, the exact target with one, for any scheduler."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import ConfigMixin, ModelMixin, UNet2DModel
from diffusers.configuration_utils import register_to_config
from torch import Tensor

import egd
from egd.errors import UserError
from egd.pipelines import EnergyGuidedPipeline
from egd.posteriors import IsotropicGaussian
from egd.schedules import from_diffusers

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
}
MEAN, VAR, SIDE = 0.1, 0.04, 4


@pytest.fixture(autouse=True)
def float32(float64: None) -> None:
    """What diffusers is made for: its UniPC fails where float64 is the default."""
    torch.set_default_dtype(torch.float32)


def scheduler(name: str) -> Any:
    kind, settings = SCHEDULERS[name]
    return getattr(diffusers, kind)(**settings)


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

    def forward(self, x: Tensor, timestep: Any, class_labels: Tensor | None = None) -> SimpleNamespace:
        t = torch.as_tensor(timestep).to(x).reshape(-1, 1, 1, 1)
        answer = {"vp": self.vp, "flow": self.flow, "edm": self.edm}[self.family](x, t)
        return SimpleNamespace(sample=answer)

    def vp(self, x: Tensor, t: Tensor) -> Tensor:
        product = diffusers.DDPMScheduler().alphas_cumprod.double()
        lam = 0.5 * (product / (1 - product)).log()
        left = t.floor().long().clamp(max=998)
        at = torch.lerp(lam[left], lam[left + 1], (t - left).double()).to(x)
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
    assert torch.equal(run(rule={"name": "rescaled"}), run(rule=egd.Rescaled()))
    assert torch.equal(run(omega=0.5), run(rule=egd.Additive(0.5)))
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
    with pytest.raises(ValueError, match=r"posterior=pipe\.calibrate"):
        pipe(energy=quadratic(0, 1), guidance="first_order")
    with pytest.raises(ValueError, match="support="):
        pipe(energy=quadratic(0, 1), guidance="support_samples")
    with pytest.raises(UserError, match="did you mean 'first_order'"):
        pipe(energy=quadratic(0, 1), guidance="frist_order")
    with pytest.raises(UserError, match="no setting 'omga'"):
        pipe(energy=quadratic(0, 1), rule={"name": "additive", "omga": 1})


def test_half_precision_weights_are_guided(plain_unet: UNet2DModel) -> None:
    pipe = quiet(EnergyGuidedPipeline(plain_unet.to(torch.bfloat16), scheduler("dpm")))
    images = pipe(batch_size=2, energy=quadratic(0.5, 1.0), num_inference_steps=4, output_type="np").images
    assert images.shape == (2, 4, 4, 1) and np.isfinite(images).all()


def test_its_schedule_is_the_schedulers() -> None:
    s = scheduler("ddpm")
    pipe = EnergyGuidedPipeline(GaussianUNet("ddpm"), s)
    t = torch.tensor([0.25])
    assert torch.equal(pipe.schedule.alpha(t), from_diffusers(s).alpha(t))
