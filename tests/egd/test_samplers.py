"""Samplers against diffusers, against an exact solution, and against exact samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    HeunDiscreteScheduler,
)
from torch import Tensor

from egd.config.catalogue import SAMPLERS
from egd.config.components import Spec
from egd.denoisers import Prediction, convert
from egd.errors import UserError
from egd.guidance import guide
from egd.metrics import sliced_wasserstein
from egd.mixtures import GaussianMixture, Quadratic
from egd.rules import Additive
from egd.samplers import (
    ancestral,
    choose,
    ddim,
    differentiable,
    dpm_solver_pp_1,
    dpm_solver_pp_2m,
    dpm_solver_pp_3m,
    euler,
    heun,
    initial_noise,
)
from egd.schedules import EDM, VE, Diffusers, FlowMatching, VPCosine, VPLinear, time_grid
from egd.types import Sampler, Schedule

DETERMINISTIC = {name: sampler for name, sampler in SAMPLERS.names().items() if name != "ancestral"}
VARIED = {
    "ddim-half": partial(ddim, eta=0.5),
    "3m-full": partial(dpm_solver_pp_3m, curvature=1.0),
    "heun-rescaled": partial(heun, rescaled=True),
    "heun-churn": partial(heun, s_churn=3.0),
}
EVERY = pytest.mark.parametrize("sampler", SAMPLERS.names().values(), ids=SAMPLERS.names())
WITHOUT_NOISE = pytest.mark.parametrize("sampler", DETERMINISTIC.values(), ids=DETERMINISTIC)
SCHEDULES = {
    "linear": VPLinear(),
    "cosine": VPCosine(),
    "ve": VE(),
    "edm": EDM(),
    "flow": FlowMatching(),
    "diffusers": Diffusers("DDPMScheduler"),
}
STEPS = 10


@dataclass(frozen=True)
class Tabulated:
    """A scheduler's own alphas and sigmas, noise first, at the times 1, 1 - 1/N, ..., 0."""

    alphas: Tensor  # (N + 1,)
    sigmas: Tensor

    def alpha(self, t: Tensor) -> Tensor:
        return self.alphas[self.place(t)]

    def sigma(self, t: Tensor) -> Tensor:
        return self.sigmas[self.place(t)]

    def place(self, t: Tensor) -> Tensor:
        return ((1 - t) * (len(self.alphas) - 1)).round().long()

    def to(self, dtype: torch.dtype) -> Tabulated:
        return Tabulated(self.alphas.to(dtype), self.sigmas.to(dtype))


def loud(sigmas: Tensor) -> Tabulated:
    """alpha = 1"""
    return Tabulated(torch.ones_like(sigmas), sigmas)


def vp(products: Tensor) -> Tabulated:
    """alpha^2 = the cumulative products"""
    return Tabulated(products.sqrt(), (1 - products).sqrt())


def in_dtype(m: GaussianMixture, dtype: torch.dtype) -> GaussianMixture:
    return GaussianMixture(m.log_weights.to(dtype), m.means.to(dtype), m.covs.to(dtype))


def walk(scheduler: Any, table: Tabulated, m: GaussianMixture, x: Tensor, kind: Prediction, **settings: Any) -> Tensor:
    """diffusers' own loop with the mixture's exact denoiser, as a prediction of that kind."""
    times = torch.linspace(1, 0, STEPS + 1, dtype=x.dtype)
    twice = len(scheduler.timesteps) > STEPS  # two evaluations a step
    for k, step in enumerate(scheduler.timesteps):
        rows = times[(k + 1) // 2 if twice else k].expand(len(x))
        if hasattr(scheduler, "scale_model_input"):
            scheduler.scale_model_input(x, step)  # it insists on being asked
        out = convert(m.denoise(table, x, rows), x, rows, table, "sample", kind)
        x = scheduler.step(out, step, x, **settings).prev_sample
    return x


def agree(
    sampler: Sampler,
    scheduler: Any,
    table: Tabulated,
    m: GaussianMixture,
    kind: Prediction,
    dtype: torch.dtype,
    own: Tabulated | None = None,
    **settings: Any,
) -> None:
    """Both from the same noise; ``own`` is the schedule of our walk where it is not the scheduler's."""
    table, m = table.to(dtype), in_dtype(m, dtype)
    own = table if own is None else own.to(dtype)
    noise = torch.randn(64, 2, generator=torch.Generator().manual_seed(0)).to(dtype)
    want = walk(scheduler, table, m, table.sigmas[0] * noise, kind, **settings)
    times = torch.linspace(1, 0, STEPS + 1, dtype=dtype)
    fresh = torch.Generator().manual_seed(1)
    start = own.sigmas[0] * noise
    got = sampler(lambda x, t, c: m.denoise(own, x, t), own, start, times, generator=fresh)
    assert got.dtype == want.dtype == dtype
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


PREDICTIONS = pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])


@DTYPES
@PREDICTIONS
@pytest.mark.parametrize(
    ("order", "sampler"), [(1, dpm_solver_pp_1), (2, dpm_solver_pp_2m), (3, dpm_solver_pp_3m)], ids=["1", "2m", "3m"]
)
def test_dpm_solver_pp_agrees_with_diffusers(
    mixture: GaussianMixture, order: int, sampler: Sampler, kind: Prediction, dtype: torch.dtype
) -> None:
    scheduler = DPMSolverMultistepScheduler(
        algorithm_type="dpmsolver++",
        solver_order=order,
        solver_type="midpoint",
        prediction_type=kind,
        final_sigmas_type="zero",
        lower_order_final=False,  # but for the step to sigma = 0
    )
    scheduler.set_timesteps(STEPS)
    table = Tabulated(*scheduler._sigma_to_alpha_sigma_t(scheduler.sigmas))
    agree(sampler, scheduler, table, mixture, kind, dtype)


@DTYPES
@pytest.mark.parametrize(("order", "sampler"), [(2, dpm_solver_pp_2m), (3, dpm_solver_pp_3m)], ids=["2m", "3m"])
def test_dpm_solver_pp_agrees_with_diffusers_on_edm(
    mixture: GaussianMixture, order: int, sampler: Sampler, dtype: torch.dtype
) -> None:
    scheduler = EDMDPMSolverMultistepScheduler(
        solver_order=order, prediction_type="v_prediction", sigma_data=1.0, lower_order_final=False
    )
    scheduler.set_timesteps(STEPS)
    agree(sampler, scheduler, loud(scheduler.sigmas), mixture, "v_prediction", dtype)


def products(scheduler: DDIMScheduler | DDPMScheduler) -> Tensor:
    scheduler.set_timesteps(STEPS)
    return torch.cat([scheduler.alphas_cumprod[scheduler.timesteps], torch.ones(1)]).double()


@DTYPES
@PREDICTIONS
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_ddim_agrees_with_diffusers(mixture: GaussianMixture, kind: Prediction, dtype: torch.dtype, eta: float) -> None:
    scheduler = DDIMScheduler(clip_sample=False, prediction_type=kind)
    noise = {"eta": eta, "generator": torch.Generator().manual_seed(1)}
    agree(partial(ddim, eta=eta), scheduler, vp(products(scheduler)), mixture, kind, dtype, **noise)


@DTYPES
@PREDICTIONS
def test_ancestral_agrees_with_diffusers_ddpm(mixture: GaussianMixture, kind: Prediction, dtype: torch.dtype) -> None:
    scheduler = DDPMScheduler(clip_sample=False, prediction_type=kind, variance_type="fixed_small")
    noise = {"generator": torch.Generator().manual_seed(1)}
    agree(ancestral, scheduler, vp(products(scheduler)), mixture, kind, dtype, **noise)


def unit_scale(sigmas: Tensor) -> Tabulated:
    """The variance-preserving schedule with these sigma/alpha."""
    return vp(1 / (1 + sigmas.double() ** 2))


@DTYPES
@PREDICTIONS
@pytest.mark.parametrize("rescaled", [True, False])
def test_heun_agrees_with_diffusers(mixture: GaussianMixture, kind: Prediction, dtype: torch.dtype, rescaled: bool) -> None:
    for own in (loud, unit_scale) if rescaled else (loud,):  # the same steps in x/alpha, whatever alpha
        scheduler = HeunDiscreteScheduler(prediction_type=kind)
        scheduler.set_timesteps(STEPS)
        sigmas = torch.cat([scheduler.sigmas[:1], scheduler.sigmas[1::2]])
        agree(partial(heun, rescaled=rescaled), scheduler, loud(sigmas), mixture, kind, dtype, own(sigmas))


@DTYPES
def test_euler_agrees_with_diffusers(mixture: GaussianMixture, dtype: torch.dtype) -> None:
    for own in (loud, unit_scale):
        scheduler = EulerDiscreteScheduler(prediction_type="epsilon")
        scheduler.set_timesteps(STEPS)
        agree(euler, scheduler, loud(scheduler.sigmas), mixture, "epsilon", dtype, own(scheduler.sigmas))
    scheduler = EDMEulerScheduler(prediction_type="v_prediction", sigma_data=1.0)
    scheduler.set_timesteps(STEPS)
    agree(euler, scheduler, loud(scheduler.sigmas), mixture, "v_prediction", dtype)


@DTYPES
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flows_agree_with_diffusers_from_pure_noise(mixture: GaussianMixture, dtype: torch.dtype, shift: float) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(STEPS)
    assert scheduler.sigmas[0] == 1  # alpha = 0
    agree(euler, scheduler, Tabulated(1 - scheduler.sigmas, scheduler.sigmas), mixture, "flow", dtype)
    scheduler = FlowMatchHeunDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(STEPS)
    sigmas = torch.cat([scheduler.sigmas[:1], scheduler.sigmas[1::2]])
    agree(heun, scheduler, Tabulated(1 - sigmas, sigmas), mixture, "flow", dtype)


def flow_error(sampler: Callable, schedule: Schedule, normal: Callable, steps: int) -> float:
    """On N(m, v) the probability-flow ODE is solved exactly: (x_t - alpha_t m) / sqrt(alpha_t^2 v + sigma_t^2) is constant."""
    m, v = torch.tensor([0.7]), 0.3
    times = time_grid(schedule, steps, start=0.95, end=0.05, spacing="log_snr")
    x = torch.linspace(-2, 2, 9)[:, None]
    (alpha, end), (sigma, sigma_end) = schedule.alpha(times[[0, -1]]), schedule.sigma(times[[0, -1]])
    z = (x - alpha * m) / (alpha**2 * v + sigma**2).sqrt()
    exact = end * m + (end**2 * v + sigma_end**2).sqrt() * z
    return float((sampler(normal(m, v).denoiser(schedule), schedule, x, times) - exact).abs().max())


ORDERS = {
    "ddim": (ddim, 1),
    "dpm_solver_pp_1": (dpm_solver_pp_1, 1),
    "euler": (euler, 1),
    "dpm_solver_pp_2m": (dpm_solver_pp_2m, 2),
    "heun": (heun, 2),
    "heun-rescaled": (partial(heun, rescaled=True), 2),
    "dpm_solver_pp_3m": (dpm_solver_pp_3m, 2),  # as published
}


@pytest.mark.parametrize("schedule", [VPLinear(), VPCosine(), FlowMatching(), EDM()], ids=["linear", "cosine", "flow", "edm"])
@pytest.mark.parametrize(("sampler", "order"), ORDERS.values(), ids=ORDERS)
def test_the_order_of_convergence(sampler: Callable, order: int, schedule: Schedule, normal: Callable) -> None:
    errors = [flow_error(sampler, schedule, normal, steps) for steps in (80, 160, 320)]
    assert errors[0] / errors[1] == pytest.approx(2**order, rel=0.15)
    assert errors[1] / errors[2] == pytest.approx(2**order, rel=0.07)


def test_the_full_curvature_makes_3m_of_third_order(normal: Callable) -> None:
    full = partial(dpm_solver_pp_3m, curvature=1.0)
    errors = [flow_error(full, VPLinear(), normal, steps) for steps in (80, 160, 320)]
    assert errors[0] / errors[1] == pytest.approx(8, rel=0.15)
    assert errors[1] / errors[2] == pytest.approx(8, rel=0.07)
    half = flow_error(dpm_solver_pp_3m, VPLinear(), normal, 320)
    assert errors[2] < half / 10 < flow_error(dpm_solver_pp_2m, VPLinear(), normal, 320) / 10


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("sampler", [*SAMPLERS.names().values(), *VARIED.values()], ids=[*SAMPLERS.names(), *VARIED])
def test_every_sampler_samples_a_mixture_on_every_schedule(
    sampler: Sampler, schedule: Schedule, mixture: GaussianMixture, generator: torch.Generator
) -> None:
    times = time_grid(schedule, 40, spacing="log_snr")
    x = initial_noise(schedule, (1000, 2), times[0], generator)
    x = sampler(lambda x, t, c: mixture.denoise(schedule, x, t), schedule, x, times, generator=generator)
    exact = mixture.sample(20_000, generator)
    assert sliced_wasserstein(x, exact, 50, generator) < 0.15  # 1000 exact samples: 0.05 to 0.15


@pytest.mark.parametrize("sampler", [*SAMPLERS.names().values(), *VARIED.values()], ids=[*SAMPLERS.names(), *VARIED])
def test_a_walk_may_start_at_pure_noise_and_end_at_the_data(
    sampler: Sampler, mixture: GaussianMixture, generator: torch.Generator
) -> None:
    schedule, x = FlowMatching(), torch.randn(1000, 2, generator=generator)
    x = sampler(lambda x, t, c: mixture.denoise(schedule, x, t), schedule, x, torch.linspace(1, 0, 41), generator=generator)
    assert x.isfinite().all()
    assert sliced_wasserstein(x, mixture.sample(20_000, generator), 50, generator) < 0.17


@EVERY
def test_a_constant_denoiser_is_reached_in_one_step(sampler: Sampler, schedule: Schedule, generator: torch.Generator) -> None:
    goal, x = torch.randn(2, 5, 3, 2, generator=generator)
    got = sampler(lambda x, t, c: goal, schedule, x, torch.tensor([0.9, 0.0]))
    torch.testing.assert_close(got, goal)


@EVERY
def test_a_walk_to_time_zero_ends_exactly_on_the_denoised(
    sampler: Sampler, schedule: Schedule, mixture: GaussianMixture, generator: torch.Generator
) -> None:
    x, seen = torch.randn(8, 2, generator=generator), []

    def denoiser(x: Tensor, t: Tensor, c: None) -> Tensor:
        seen.append(mixture.denoise(schedule, x, t))
        return seen[-1]

    got = sampler(denoiser, schedule, x, torch.linspace(0.9, 0, 8), generator=generator)
    assert len(seen) == (13 if sampler is heun else 7)  # one evaluation a step, or two but in the last
    torch.testing.assert_close(got, seen[-1], rtol=1e-12, atol=1e-12)


@WITHOUT_NOISE
def test_sampling_is_deterministic_given_the_noise(
    sampler: Sampler, mixture: GaussianMixture, generator: torch.Generator
) -> None:
    x, times = torch.randn(8, 2, generator=generator), time_grid(VPLinear(), 6)

    def run(rows: slice) -> Tensor:
        return sampler(lambda x, t, c: mixture.denoise(VPLinear(), x, t), VPLinear(), x[rows], times, generator=generator)

    before = generator.get_state()
    assert torch.equal(run(slice(8)), run(slice(8)))
    torch.testing.assert_close(run(slice(2, 4)), run(slice(8))[2:4])
    assert torch.equal(generator.get_state(), before)


@pytest.mark.parametrize("sampler", [ancestral, VARIED["ddim-half"], VARIED["heun-churn"]])
def test_fresh_noise_comes_from_the_generator(sampler: Sampler, mixture: GaussianMixture) -> None:
    x, times = torch.randn(8, 2), time_grid(VPLinear(), 6)

    def run(seed: int) -> Tensor:
        g = torch.Generator().manual_seed(seed)
        return sampler(lambda x, t, c: mixture.denoise(VPLinear(), x, t), VPLinear(), x, times, generator=g)

    assert torch.equal(run(0), run(0))
    assert not torch.allclose(run(0), run(1))


@pytest.mark.parametrize("eta", [-0.1, 1.1])
def test_an_eta_that_leaves_no_noise_to_keep_is_refused(eta: float) -> None:
    with pytest.raises(ValueError, match="need 0 <= eta <= 1"):
        ddim(lambda x, t, c: x, VPLinear(), torch.zeros(1, 1), torch.tensor([1.0, 0.5]), eta=eta)


def test_churn_stays_within_its_range_and_within_unit_time(mixture: GaussianMixture, generator: torch.Generator) -> None:
    schedule, seen = EDM(), []

    def denoiser(x: Tensor, t: Tensor, c: None) -> Tensor:
        seen.append(float(t[0]))
        return mixture.denoise(schedule, x, t)

    times = time_grid(schedule, 8)
    x = initial_noise(schedule, (4, 2), 1.0, generator)
    heun(denoiser, schedule, x, times, s_churn=2.0, s_min=0.05, s_max=50.0, generator=generator)
    assert max(seen) <= 1
    moved = [t > own + 1e-6 for t, own in zip(seen[::2], times, strict=False)]
    assert moved == [0.05 <= float(s) <= 50 for s in schedule.sigma(times[:-1])]
    table = Tabulated(torch.tensor([0.6, 0.8]), torch.tensor([0.8, 0.6]))
    with pytest.raises(ValueError, match="churn needs Tabulated"):
        heun(lambda x, t, c: x, table, x, torch.tensor([1.0, 0.0]), s_churn=1.0)


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_initial_noise_has_the_scale_of_the_schedule(schedule: Schedule) -> None:
    got = initial_noise(schedule, (50_000, 2), 0.7, torch.Generator().manual_seed(3), dtype=torch.float32)
    plain = torch.randn(50_000, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float32)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, schedule.sigma(torch.tensor(0.7, dtype=torch.float32)) * plain)


@EVERY
def test_the_context_reaches_the_denoiser_at_every_step(sampler: Sampler, generator: torch.Generator) -> None:
    x, c = torch.randn(2, 4, 2, generator=generator)
    torch.testing.assert_close(sampler(lambda x, t, c: c, VPLinear(), x, torch.tensor([1.0, 0.5, 0.0]), c), c)


@EVERY
@pytest.mark.parametrize("times", [[0.0, 1.0], [1.0, 0.5, 0.5], [1.0], [[1.0, 0.0]]], ids=["rising", "flat", "one", "2-d"])
def test_times_that_do_not_fall_are_refused(sampler: Sampler, times: list) -> None:
    with pytest.raises(ValueError, match="times must decrease, noise first"):
        sampler(lambda x, t, c: x, VPLinear(), torch.zeros(1, 1), torch.tensor(times))


def test_a_sampler_is_chosen_with_its_settings(tmp_path: Path) -> None:
    assert choose(Spec("heun", {}), "sampler") is heun
    assert choose(Spec("ddim", {"eta": "5e-1"}), "sampler").keywords == {"eta": 0.5}
    (tmp_path / "mine.py").write_text(
        "def still(denoiser, schedule, x, times, c=None, *, by: float = 2.0, generator=None):\n    return by * x\n"
        "def short(denoiser, x):\n    return x\n"
    )
    mine = choose(Spec(f"{tmp_path}/mine.py:still", {"by": 3}), "sampler")
    assert mine(None, None, torch.ones(1), None) == 3
    with pytest.raises(UserError, match="is no sampler: it takes no c, generator, schedule, times"):
        choose(Spec(f"{tmp_path}/mine.py:short", {}), "sampler")


@pytest.mark.parametrize(
    ("name", "settings", "key", "words"),
    [
        ("dpm_solver", {}, "sampler", "no sampler is called 'dpm_solver'; did you mean 'dpm_solver_pp_"),
        ("ddim", {"etta": 0.5}, "sampler.etta", "did you mean 'eta'"),
        ("ddim", {"eta": "much"}, "sampler.eta", "'much' does not fit"),
        ("ddim", {"step": 5}, "sampler.step", "did you mean 'steps'"),
        ("ddim", {"denoiser": 5}, "sampler.denoiser", "has no setting 'denoiser'"),
        ("nowhere.py:mine", {}, "sampler", "no such file"),
    ],
)
def test_a_wrong_choice_is_named_with_its_remedy(name: str, settings: dict, key: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        choose(Spec(name, settings), "sampler", others=["steps", "end"])
    assert caught.value.key == key


@pytest.mark.parametrize("beta", [1.0, 3.0])
def test_guided_sampling_with_the_exact_oracle_reproduces_the_target(generator: torch.Generator, beta: float) -> None:
    n, schedule = 3000, VPLinear()
    means = torch.tensor([[2.0, 0.0], [-2.0, 1.0], [0.0, -2.5]])
    m = GaussianMixture(torch.tensor([0.5, 0.2, 0.3]).log(), means, 0.1 * torch.eye(2).expand(3, 2, 2))
    energy = Quadratic(0.2 * torch.eye(2), torch.tensor([0.3, 0.2]))
    target = m.tilted(energy, beta)
    guided = guide(
        lambda x, t, c: m.denoise(schedule, x, t), lambda x, t, c: m.energy(schedule, energy, beta, x, t), Additive(), schedule
    )
    x = torch.randn(n, 2, generator=generator)
    x = dpm_solver_pp_2m(guided, schedule, x, time_grid(schedule, 30, spacing="log_snr"))
    exact = target.log_weights.exp()
    share = torch.cdist(x, means).argmin(1).bincount(minlength=3) / n
    assert ((share - exact) / (exact * (1 - exact) / n).sqrt()).abs().max() < 4
    assert (exact - m.log_weights.exp()).abs().max() > 0.1  # which q itself would not pass
    many = energy(target.sample(200_000, generator))
    assert abs(energy(x).mean() - many.mean()) < 4 * many.std() * (1 / n + 1 / 200_000) ** 0.5
    assert float(energy(x).std()) == pytest.approx(float(many.std()), rel=0.1)


@pytest.mark.parametrize("name", [*SAMPLERS.names(), *VARIED])
def test_a_differentiable_walk_has_the_gradient_of_its_samples(name: str) -> None:
    sampler = {**SAMPLERS.names(), **VARIED}[name]
    schedule, times, x = VPLinear(), time_grid(VPLinear(), 5, end=0.01), torch.randn(3, 2)

    def samples(w: Tensor, walk: Sampler) -> Tensor:
        fresh = torch.Generator().manual_seed(1)
        return walk(lambda x, t, c: torch.tanh(x @ w), schedule, x, times, generator=fresh)

    w, smooth = torch.randn(2, 2, requires_grad=True), differentiable(sampler)
    torch.testing.assert_close(samples(w, smooth).detach(), samples(w, sampler), rtol=0, atol=0)
    assert not samples(w, sampler).requires_grad  # a graph only for those who ask
    assert torch.autograd.gradcheck(lambda w: samples(w, smooth), w)
