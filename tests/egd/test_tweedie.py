"""Tweedie's covariance against the exact one of mixtures and linear denoisers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from egd.energies import FirstOrder
from egd.mixtures import GaussianMixture, Quadratic
from egd.posteriors import ExactPosterior, Tweedie
from egd.schedules import FlowMatching, VPLinear
from egd.tensors import value_and_grad
from egd.types import Context, Denoiser, Gaussian, Schedule

ENERGY = Quadratic(
    torch.tensor([[0.8, 0.3], [0.3, 0.5]], dtype=torch.float64), torch.tensor([1.0, -0.5], dtype=torch.float64), 0.7
)


def exact_denoiser(m: GaussianMixture, schedule: Schedule) -> Denoiser:
    return lambda x, t, c=None: m.denoise(schedule, x, t)


def points(m: GaussianMixture, schedule: Schedule, n: int = 32) -> tuple[Tensor, Tensor]:
    t = torch.linspace(0.02, 0.98, n)
    return m.noised(schedule, t, torch.Generator().manual_seed(3)), t


def covariance(q: Gaussian) -> Tensor:
    return q.root() @ q.root().mT


@pytest.mark.parametrize("t", [0.15, 0.4, 0.8])
def test_the_exact_posterior_has_the_moments_of_quadrature(
    mixture: GaussianMixture, schedule: Schedule, lattice: Callable, t: float
) -> None:
    nodes, _ = lattice(2, 12.0, 481)
    times = torch.full((4,), t)
    x = mixture.noised(schedule, times, torch.Generator().manual_seed(7))
    alpha, sigma = schedule.alpha(times[:1]), schedule.sigma(times[:1])
    w = (mixture.log_prob(nodes) - (x[:, None] - alpha * nodes).square().sum(2) / (2 * sigma**2)).softmax(1)
    offset = nodes - (w @ nodes)[:, None]
    q = ExactPosterior(mixture, schedule)(x, times)
    torch.testing.assert_close(q.mean, w @ nodes, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(covariance(q), torch.einsum("bn,bni,bnj->bij", w, offset, offset), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
def test_tweedie_is_the_exact_covariance_its_diagonal_and_its_trace(
    mixture: GaussianMixture, schedule: Schedule, reverse: bool
) -> None:
    x, t = points(mixture, schedule)
    exact = ExactPosterior(mixture, schedule)(x, t)
    diagonal = covariance(exact).diagonal(dim1=1, dim2=2)
    denoiser = exact_denoiser(mixture, schedule)
    made = {kind: Tweedie(denoiser, schedule, kind, reverse=reverse)(x, t) for kind in ("full", "diagonal", "trace")}
    torch.testing.assert_close(covariance(made["full"]), covariance(exact), rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(made["diagonal"].var, diagonal, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(made["trace"].var, diagonal.mean(1), rtol=1e-7, atol=1e-9)
    for q in made.values():
        torch.testing.assert_close(q.mean, exact.mean)


@pytest.mark.parametrize("t", [0.1, 0.4, 0.7])
def test_its_average_over_x_is_the_full_form_of_posterior_1(
    mixture: GaussianMixture, schedule: Schedule, lattice: Callable, t: float
) -> None:
    """(sigma^2/alpha^2) (I - E[eps eps^T]), AEPO Eq. 21, with the expectation over x_t taken by quadrature."""
    x, cell = lattice(2, 11.0, 161)
    times = torch.full((len(x),), t)
    alpha, sigma = schedule.alpha(times), schedule.sigma(times)
    density = mixture.log_prob(x, alpha, sigma).exp() * cell
    eps = (x - alpha[:, None] * mixture.denoise(schedule, x, times)) / sigma[:, None]
    want = (sigma[0] / alpha[0]) ** 2 * (torch.eye(2) - torch.einsum("b,bi,bj->ij", density, eps, eps))
    q = Tweedie(exact_denoiser(mixture, schedule), schedule)(x, times)
    torch.testing.assert_close(torch.einsum("b,bij->ij", density, covariance(q)), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
def test_energies_are_differentiated_through_the_covariance_unless_detached(
    mixture: GaussianMixture, schedule: Schedule, reverse: bool
) -> None:
    x, t = points(mixture, schedule, 8)
    denoiser = exact_denoiser(mixture, schedule)
    for kind in ("full", "diagonal", "trace"):
        energy = FirstOrder(ENERGY, Tweedie(denoiser, schedule, kind, reverse=reverse))
        _, grad = value_and_grad(lambda x, energy=energy: energy(x, t), x)
        for i, h in enumerate(1e-5 * torch.eye(2)):
            torch.testing.assert_close((energy(x + h, t) - energy(x - h, t)) / 2e-5, grad[:, i], rtol=1e-5, atol=1e-5)
        held = Tweedie(denoiser, schedule, kind, detach=True, reverse=reverse)
        torch.testing.assert_close(covariance(held(x, t)), covariance(Tweedie(denoiser, schedule, kind)(x, t)))
        leaf = x.clone().requires_grad_()
        assert held(leaf, t).mean.requires_grad and not held(leaf, t).root().requires_grad


def linear(matrix: Tensor) -> Denoiser:
    """D(x, t, c) = scale A x, the scale that of the context; any event shape."""

    def denoiser(x: Tensor, t: Tensor, c: Context) -> Tensor:
        assert isinstance(c, dict)
        return (c["scale"][:, None] * x.flatten(1) @ matrix.mT).reshape(x.shape)

    return denoiser


def scaled_rows(shape: tuple[int, ...], generator: torch.Generator) -> tuple[Tensor, Tensor, dict[str, Tensor], Tensor]:
    """x (3, ...), t, a context, and (sigma^2/alpha) times its scale (3, 1, 1)."""
    x, t = torch.randn(3, *shape, generator=generator), torch.tensor([0.2, 0.5, 0.9])
    scale = torch.tensor([1.0, 2.0, 3.0])
    gain = VPLinear().sigma(t) ** 2 / VPLinear().alpha(t)
    return x, t, {"scale": scale}, (gain * scale)[:, None, None]


@pytest.mark.parametrize("shape", [(6,), (1, 2, 3)])
def test_every_row_has_the_jacobian_of_its_own_time_and_context(shape: tuple[int, ...], generator: torch.Generator) -> None:
    root = torch.randn(6, 6, generator=generator)
    matrix = root @ root.mT + torch.eye(6)
    x, t, c, gain = scaled_rows(shape, generator)
    want = gain * matrix
    full, diagonal, trace = (Tweedie(linear(matrix), VPLinear(), kind)(x, t, c) for kind in ("full", "diagonal", "trace"))
    torch.testing.assert_close(covariance(full), want)
    torch.testing.assert_close(diagonal.var, want.diagonal(dim1=1, dim2=2).reshape(x.shape))
    torch.testing.assert_close(trace.var, want.diagonal(dim1=1, dim2=2).mean(1))


def test_a_trained_denoisers_jacobian_is_symmetrised_and_repaired(generator: torch.Generator) -> None:
    """Asymmetric and indefinite: what a network's is."""
    vectors = torch.linalg.qr(torch.randn(4, 4, generator=generator)).Q
    values = torch.tensor([2.0, 0.7, 0.1, -0.5])
    twist = torch.randn(4, 4, generator=generator)
    matrix = vectors @ values.diag() @ vectors.mT + twist - twist.mT
    x, t, c, gain = scaled_rows((4,), generator)
    q = Tweedie(linear(matrix), VPLinear())(x, t, c)
    want = gain * (vectors @ torch.tensor([2.0, 0.7, 0.1, 2e-6]).diag() @ vectors.mT)
    torch.testing.assert_close(covariance(q), want, rtol=1e-6, atol=1e-8)
    sign = Tweedie(linear(-torch.eye(4)), VPLinear(), "diagonal")(x, t, c)
    torch.testing.assert_close(sign.var, torch.full((3, 4), 1e-12))


def test_a_network_without_a_forward_derivative_takes_the_reverse(generator: torch.Generator) -> None:
    class Scale(torch.autograd.Function):
        """2 x, with a backward pass only: as fused attention."""

        @staticmethod
        def forward(x: Tensor) -> Tensor:
            return 2 * x

        @staticmethod
        def setup_context(ctx: object, inputs: tuple[Tensor], output: Tensor) -> None:
            """Nothing to keep."""

        @staticmethod
        def backward(ctx: object, g: Tensor) -> Tensor:
            return 2 * g

    x, t = torch.randn(3, 2, generator=generator), torch.tensor([0.2, 0.5, 0.9])
    denoiser = lambda x, t, c: Scale.apply(x)  # noqa: E731
    gain = 2 * VPLinear().sigma(t) ** 2 / VPLinear().alpha(t)
    q = Tweedie(denoiser, VPLinear(), reverse=True)(x, t)
    torch.testing.assert_close(covariance(q), gain[:, None, None] * torch.eye(2))
    with torch.no_grad():
        torch.testing.assert_close(covariance(Tweedie(denoiser, VPLinear(), reverse=True)(x, t)), covariance(q))
    with pytest.raises(RuntimeError, match="jvp"):
        Tweedie(denoiser, VPLinear())(x, t)


def test_probes_are_exact_for_a_diagonal_jacobian(generator: torch.Generator) -> None:
    x, t, c, gain = scaled_rows((6,), generator)
    diagonal = 0.1 + torch.rand(6, generator=generator)
    q = Tweedie(linear(diagonal.diag()), VPLinear(), "diagonal", probe_above=2, probes=1)(x, t, c)
    torch.testing.assert_close(q.var, gain[..., 0] * diagonal)


def test_probes_are_unbiased_and_near_with_many_of_them(generator: torch.Generator) -> None:
    root = torch.randn(6, 6, generator=generator)
    matrix = root @ root.mT + 6 * torch.eye(6)
    x, t, c, gain = scaled_rows((2, 3), generator)
    want = (gain * matrix).diagonal(dim1=1, dim2=2)

    def probed(kind: str, probes: int, seed: int = 0) -> Tensor:
        return Tweedie(linear(matrix), VPLinear(), kind, probe_above=2, probes=probes, seed=seed)(x, t, c).var

    runs = torch.stack([probed("diagonal", 4, seed).flatten(1) for seed in range(200)])
    assert ((runs.mean(0) - want) / (runs.std(0) / 200**0.5)).abs().max() < 4
    torch.testing.assert_close(probed("diagonal", 5000).flatten(1), want, rtol=0.05, atol=0)
    torch.testing.assert_close(probed("trace", 5000), want.mean(1), rtol=0.02, atol=0)
    assert torch.equal(probed("diagonal", 4), probed("diagonal", 4))
    assert not torch.equal(probed("diagonal", 4), probed("diagonal", 4, seed=1))


def test_a_full_covariance_of_many_dimensions_is_refused_with_a_remedy() -> None:
    x, t = torch.zeros(1, 65), torch.ones(1)
    with pytest.raises(ValueError, match=r"65 dimensions .* raise probe_above \(now 64\) or use covariance='diagonal'"):
        Tweedie(lambda x, t, c: x, VPLinear())(x, t)


@pytest.mark.parametrize("kind", ["full", "diagonal", "trace"])
def test_where_alpha_is_zero_the_covariance_is_the_limit(mixture: GaussianMixture, kind: str) -> None:
    schedule = FlowMatching()
    x, t = torch.randn(5, 2), torch.tensor([0.3, 0.9, 1.0, 1.0, 1.0])
    got = covariance(Tweedie(exact_denoiser(mixture, schedule), schedule, kind)(x, t))
    exact = covariance(ExactPosterior(mixture, schedule)(x, t))
    if kind != "full":
        diagonal = exact.diagonal(dim1=1, dim2=2)
        exact = (diagonal if kind == "diagonal" else diagonal.mean(1, keepdim=True).expand(5, 2)).diag_embed()
    torch.testing.assert_close(got, exact, rtol=0.02, atol=0.02)
