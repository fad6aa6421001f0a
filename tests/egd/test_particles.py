"""Sequential Monte Carlo against closed forms: whatever the guidance, the target is the same."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from egd.energies import DPS
from egd.mixtures import GaussianMixture, Quadratic
from egd.particles import Particles, smc, transition
from egd.rules import Additive, Rescaled
from egd.schedules import VPLinear, time_grid
from egd.types import Denoiser, Schedule, TimedEnergy

BOWL = Quadratic(torch.tensor([[0.8, 0.3], [0.3, 0.5]], dtype=torch.float64), torch.tensor([1.0, -0.5], dtype=torch.float64))
BETA = 1.5
VP = VPLinear()
MEAN, VAR, PUSH = torch.tensor([0.5, -1.0, 0.2]).double(), 0.4, torch.tensor([1.0, 0.5, -0.7]).double()


def nothing(x: Tensor, t: Tensor, c: object) -> Tensor:
    return 0 * x.flatten(1).sum(1)


def wrong(x: Tensor, t: Tensor, c: object) -> Tensor:
    """Half the push, in a direction that is off, and a bowl that is not there."""
    return VP.alpha(t) * (x @ torch.tensor([0.9, 0.0, -0.2])) + 0.2 * VP.alpha(t) ** 2 * x[:, 0].square() + 3


def exact(m: GaussianMixture) -> tuple[Denoiser, TimedEnergy]:
    return lambda x, t, c=None: m.denoise(VP, x, t), lambda x, t, c: m.energy(VP, BOWL, BETA, x, t)


@pytest.fixture
def times() -> Tensor:
    return time_grid(VP, 40, spacing="log_snr").double()


def noise(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator)


def covariance(p: Particles) -> Tensor:
    """Weighted, over all rows."""
    w, d = p.log_weights.exp() / len(p.samples), p.samples - p.mean().mean(0)
    return torch.einsum("bk,bki,bkj->ij", w, d, d)


@pytest.mark.parametrize("pair", [(0.9, 0.3), (0.5, 0.49), (1.0, 0.0)])
def test_the_transition_is_bayes_rule(schedule: Schedule, generator: torch.Generator, pair: tuple[float, float]) -> None:
    """Draw (x_s, x_t) forward given x_0; the transition from x_t back to s has the joint moments."""
    t, s = (torch.tensor([v]) for v in pair)
    a, b, v = transition(schedule, t, s)
    alpha_t, alpha_s, sigma_t, sigma_s = schedule.alpha(t), schedule.alpha(s), schedule.sigma(t), schedule.sigma(s)
    torch.testing.assert_close(a * alpha_t + b, alpha_s)  # mean
    torch.testing.assert_close(a**2 * sigma_t**2 + v, sigma_s**2)  # variance
    torch.testing.assert_close(a * sigma_t**2, alpha_t / alpha_s * sigma_s**2)  # covariance of x_s and x_t given x_0


def left(t: Tensor) -> Tensor:
    """Var(x_0 | x_t) of N(MEAN, VAR I)."""
    return VAR * VP.sigma(t) ** 2 / (VP.alpha(t) ** 2 * VAR + VP.sigma(t) ** 2)


def chain(times: Tensor, variance: Callable[[Tensor], Tensor] | None) -> tuple[Tensor, Tensor]:
    """Mean and variance of unguided ancestral samples of N(MEAN, VAR I), step by step."""
    mean, var = torch.zeros(3), VP.sigma(times[0]) ** 2
    for t, s in pairwise(times):
        (a, b, v), alpha, sigma = transition(VP, t, s), VP.alpha(t), VP.sigma(t)
        gain = alpha * VAR / (alpha**2 * VAR + sigma**2)
        mean = (a + b * gain) * mean + b * (1 - gain * alpha) * MEAN
        var = (a + b * gain) ** 2 * var + v + (0 if variance is None else b**2 * variance(t))
    return mean, var


@pytest.mark.parametrize("end", [1e-3, 0.0])
@pytest.mark.parametrize("variance", [None, left], ids=["narrow", "analytic"])
@pytest.mark.parametrize("rule", [None, Additive(1.3), Rescaled(1.0)], ids=["additive", "too strong", "rescaled"])
@pytest.mark.parametrize("threshold", [0.0, 0.8, 1.1], ids=["never", "often", "always"])
def test_a_wrong_energy_costs_particles_and_no_exactness(
    normal: Callable,
    generator: torch.Generator,
    end: float,
    variance: Callable | None,
    rule: Callable | None,
    threshold: float,
) -> None:
    """Ten steps from N(m, v I), tilted by exp(-beta <b, x>): the chain's law, too, has a closed form."""
    times = torch.cat([time_grid(VP, 10, end=0.01, spacing="log_snr")[:-1], torch.tensor([end])]).double()
    energy = lambda x, c: x @ PUSH  # noqa: E731
    p = smc(
        normal(MEAN, VAR).denoiser(VP), VP, noise(generator, 2, 20_000, 3), times, energy=energy, beta=BETA,
        timed_energy=wrong, rule=rule, variance=variance, ess_threshold=threshold, generator=generator,
    )  # fmt: skip
    mean, var = chain(times, variance)
    torch.testing.assert_close(p.mean().mean(0), mean - BETA * var * PUSH, atol=0.03, rtol=0)
    torch.testing.assert_close(covariance(p), var * torch.eye(3), atol=0.03, rtol=0)
    evidence = -BETA * mean @ PUSH + BETA**2 * var * PUSH.square().sum() / 2
    torch.testing.assert_close(p.log_evidence, evidence.expand(2), atol=0.1, rtol=0)
    assert threshold > 0 or not p.resampled.any()
    assert threshold < 1 or p.resampled.all()


def test_with_the_posterior_variance_a_gaussian_is_exact_in_any_number_of_steps() -> None:
    times = torch.tensor([1.0, 0.5, 0.1, 0.0]).double()
    mean, var = chain(times, left)
    torch.testing.assert_close(mean, MEAN, atol=0.01, rtol=0)  # up to what x_1 remembers of the data
    torch.testing.assert_close(var, torch.tensor(VAR), atol=1e-4, rtol=0)
    assert chain(times, None)[1] < 0.5 * VAR


def test_a_mixture_is_reached_with_a_wrong_energy(mixture: GaussianMixture, generator: torch.Generator) -> None:
    times = time_grid(VP, 150, spacing="log_snr").double()
    denoiser, energy = exact(mixture)
    p = smc(
        denoiser, VP, noise(generator, 2, 3000, 2), times, energy=BOWL, beta=BETA,
        timed_energy=lambda x, t, c: 0.5 * energy(x, t, c) + 0.2 * x[:, 0], generator=generator,
    )  # fmt: skip
    want = mixture.tilted(BOWL, BETA).sample(200_000, generator)
    plain = mixture.sample(200_000, generator)
    torch.testing.assert_close(p.mean().mean(0), want.mean(0), atol=0.12, rtol=0)
    torch.testing.assert_close(covariance(p), want.T.cov(), atol=0.15, rtol=0)
    assert (plain.mean(0) - want.mean(0)).norm() > 0.6


LINE = GaussianMixture(
    torch.tensor([0.3, 0.5, 0.2]).double().log(),
    torch.tensor([[-2.0], [0.5], [2.5]]).double(),
    torch.tensor([0.1, 0.4, 0.2]).double()[:, None, None],
)
DIP = Quadratic(torch.ones(1, 1).double(), torch.tensor([-1.5]).double())
TWISTS: dict[str, TimedEnergy] = {
    "nothing": nothing,
    "exact": lambda x, t, c: LINE.energy(VP, DIP, 0.5, x, t),
    "dps": DPS(DIP, lambda x, t, c=None: LINE.denoise(VP, x, t), 0.2),
    "the wrong way": lambda x, t, c: -0.4 * LINE.energy(VP, DIP, 0.5, x, t),
    "waves, rising in time": lambda x, t, c: 0.2 * (2 * x[:, 0]).sin() + 4 * t,
}


def few() -> Tensor:
    return time_grid(VP, 8, end=0.03, spacing="log_snr").double()


@cache
def by_quadrature() -> Tensor:
    """Integrals of exp(-E / 2) times 1, x and x^2 over the law of unguided ancestral samples of ``LINE``, (3,): its density is
    carried from step to step on a lattice."""
    times, lattice = few(), torch.linspace(-7, 7, 701).double()[:, None]
    gap = float(lattice[1] - lattice[0])
    normal = lambda x, mean, var: torch.exp(-((x - mean) ** 2) / (2 * var)) / (2 * math.pi * var).sqrt()  # noqa: E731
    density = normal(lattice[:, 0], 0.0, VP.sigma(times[0]) ** 2)
    for t, s in pairwise(times):
        a, b, v = transition(VP, t, s)
        mean = a * lattice + b * LINE.denoise(VP, lattice, t.expand(len(lattice)))
        density = gap * normal(lattice[:, 0], mean, v).mT @ density
    assert gap * density.sum() == pytest.approx(1, abs=1e-6)
    powers = torch.cat([torch.ones_like(lattice), lattice, lattice**2], 1)
    return gap * powers.mT @ (density * torch.exp(-0.5 * DIP(lattice)))


@pytest.mark.parametrize("twist", TWISTS)
@pytest.mark.parametrize("threshold", [0.7, 1.1], ids=["often", "always"])
def test_evidence_and_moments_are_unbiased_whatever_the_twist(twist: str, threshold: float) -> None:
    """With six particles and eight steps: the average over runs is that of the chain, which a lattice has exactly."""
    times, generator, runs = few(), torch.Generator().manual_seed(4), 10_000
    p = smc(
        lambda x, t, c=None: LINE.denoise(VP, x, t), VP, noise(generator, runs, 6, 1), times, energy=DIP, beta=0.5,
        timed_energy=TWISTS[twist], ess_threshold=threshold, generator=generator,
    )  # fmt: skip
    x = p.samples[..., 0]
    powers = torch.stack([torch.ones_like(x), x, x**2], -1)
    found = p.log_evidence.exp()[:, None] * torch.einsum("bk,bkf->bf", p.log_weights.exp(), powers)
    want, error = by_quadrature(), found.std(0) / runs**0.5
    assert (error < 0.05 * want[0]).all()  # or the next line would say nothing
    assert ((found.mean(0) - want).abs() < 4 * error).all()
    exact = torch.exp(-LINE.energy(VP, DIP, 0.5, torch.zeros(1, 1).double(), torch.ones(1).double()))
    torch.testing.assert_close(want[:1], exact, rtol=0.25, atol=0)  # eight steps are near the mixture itself


def test_the_exact_energy_needs_hardly_a_weight(mixture: GaussianMixture, generator: torch.Generator) -> None:
    times = time_grid(VP, 150, spacing="log_snr").double()
    denoiser, energy = exact(mixture)
    shares = {}
    for name, timed in {"exact": energy, "nothing": nothing}.items():
        p = smc(denoiser, VP, noise(generator, 2, 500, 2), times, energy=BOWL, beta=BETA, timed_energy=timed, ess_threshold=0,
                generator=generator)  # fmt: skip
        shares[name] = float(p.ess[-1].min())
    assert shares["exact"] > 0.7
    assert shares["exact"] > 4 * shares["nothing"]


def test_without_energy_or_guidance_it_is_the_ancestral_sampler(mixture: GaussianMixture, times: Tensor) -> None:
    generator = torch.Generator().manual_seed(1)
    denoiser, _ = exact(mixture)
    x = noise(generator, 2, 5, 2)
    p = smc(denoiser, VP, x, times, energy=BOWL, beta=0.0, timed_energy=nothing, generator=torch.Generator().manual_seed(2))
    redo, y = torch.Generator().manual_seed(2), x.flatten(0, 1)
    for t, s in pairwise(times):
        torch.rand(2, 1, generator=redo)  # the resampling's
        a, b, v = transition(VP, t, s)
        y = a * y + b * denoiser(y, t.expand(10)) + v.sqrt() * noise(redo, 10, 2)
    torch.testing.assert_close(p.samples, y.reshape(2, 5, 2))
    torch.testing.assert_close(p.log_weights.exp(), torch.full((2, 5), 0.2))
    torch.testing.assert_close(p.log_evidence, torch.zeros(2))
    assert not p.resampled.any()


def test_rows_have_their_own_context_and_event_shapes_are_free(generator: torch.Generator) -> None:
    """Data N(0, I) and E = -<c, x>: the target of row i is N(beta c_i, I)."""
    c = torch.tensor([-1.0, 0.0, 1.0])[:, None, None].expand(3, 2, 2)
    seen: set[tuple[int, ...]] = set()

    def energy(x: Tensor, c: Tensor) -> Tensor:
        seen.add((*x.shape, *c.shape))
        return -(x * c).sum((1, 2))

    timed = lambda x, t, c: -BETA * (VP.alpha(t)[:, None, None] * x * c).sum((1, 2))  # noqa: E731
    times = time_grid(VP, 10, spacing="log_snr").double()
    p = smc(
        lambda x, t, c: VP.alpha(t)[:, None, None] * x, VP, noise(generator, 3, 2000, 2, 2), times, c, energy=energy,
        beta=BETA, timed_energy=timed, variance=lambda t: VP.sigma(t) ** 2, generator=generator,
    )  # fmt: skip
    assert seen == {(6000, 2, 2, 6000, 2, 2)}
    torch.testing.assert_close(p.mean(), BETA * c, atol=0.2, rtol=0)


def test_a_row_does_not_depend_on_whether_others_resample(mixture: GaussianMixture, times: Tensor) -> None:
    """A hard row beside an easy one: the easy one's lines go on undisturbed."""
    denoiser, _ = exact(mixture)
    x, c = noise(torch.Generator().manual_seed(0), 2, 50, 2), torch.tensor([[0.0], [1.0]])

    def run(scale: float) -> Particles:
        return smc(
            denoiser, VP, x, times, scale * c, energy=lambda x, c: c[:, 0] * BOWL(x), beta=BETA,
            timed_energy=lambda x, t, c: c[:, 0] * x[:, 0] * 3, generator=torch.Generator().manual_seed(1),
        )  # fmt: skip

    calm, wild = run(0.0), run(3.0)
    assert wild.resampled[:, 1].any() and not wild.resampled[:, 0].any()
    torch.testing.assert_close(calm.samples[0], wild.samples[0])


def test_draws_follow_the_weights(generator: torch.Generator) -> None:
    weights = torch.tensor([[0.7, 0.2, 0.1], [0.0, 0.5, 0.5]])
    p = Particles(torch.arange(6.0).reshape(2, 3, 1), weights.log(), torch.zeros(2), torch.ones(1, 2), torch.ones(1, 2))
    drawn = p.draw(50_000, generator=generator)
    shares = torch.stack([(drawn[i] == p.samples[i, :, 0]).double().mean(0) for i in range(2)])
    torch.testing.assert_close(shares, weights, atol=0.01, rtol=0)


def test_the_same_generator_gives_the_same_particles(mixture: GaussianMixture, times: Tensor) -> None:
    denoiser, _ = exact(mixture)
    energy, x = DPS(BOWL, denoiser, BETA), noise(torch.Generator().manual_seed(0), 1, 20, 2)
    runs = [
        smc(denoiser, VP, x, times, energy=BOWL, beta=BETA, timed_energy=energy, generator=torch.Generator().manual_seed(1))
        for _ in range(2)
    ]
    assert torch.equal(runs[0].samples, runs[1].samples)
    assert runs[0].resampled.any()
    assert len(runs[0].ess) == len(times) == len(runs[0].resampled) + 1


def test_times_must_decrease(mixture: GaussianMixture, times: Tensor) -> None:
    with pytest.raises(ValueError, match="decrease"):
        smc(exact(mixture)[0], VP, torch.zeros(1, 2, 2), times.flip(0), energy=BOWL, beta=BETA, timed_energy=nothing)


def test_a_context_of_other_rows_is_refused(mixture: GaussianMixture, times: Tensor) -> None:
    x = noise(torch.Generator().manual_seed(0), 1, 20, 2)
    with pytest.raises(ValueError, match="c has 2 rows and x 1"):
        smc(exact(mixture)[0], VP, x, times, torch.zeros(2, 1), energy=BOWL, beta=BETA, timed_energy=nothing)
