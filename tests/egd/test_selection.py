from __future__ import annotations

import pytest
import torch
from torch import Tensor

from egd.mixtures import GaussianMixture, Quadratic
from egd.selection import best_of, energy_weights, softmax_resample

BOWL = Quadratic(torch.tensor([[0.8, 0.3], [0.3, 0.5]], dtype=torch.float64), torch.tensor([1.0, -0.5], dtype=torch.float64))
BETA = 1.0


def test_the_best_of_k_has_the_least_energy_and_is_one_of_them(generator: torch.Generator) -> None:
    samples = torch.randn(6, 9, 2, generator=generator)
    best = best_of(samples, BOWL)
    energies = BOWL(samples.flatten(0, 1)).reshape(6, 9)
    torch.testing.assert_close(BOWL(best), energies.min(1).values)
    assert ((samples == best[:, None]).all(2).sum(1) == 1).all()
    assert torch.equal(best_of(samples, energies), best)


def test_an_energy_that_is_not_a_number_is_never_the_best() -> None:
    samples = torch.arange(3.0).expand(2, 3)[..., None]
    energies = torch.tensor([[torch.nan, 2.0, 1.0], [torch.inf, torch.nan, 5.0]])
    assert best_of(samples, energies)[:, 0].tolist() == [2, 2]


@pytest.mark.parametrize("wrong", [{"clip": -1.0}, {"clip": 0.0}, {"group": 0}, {"group": -2}])
def test_weights_take_positive_settings(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} is a positive number"):
        energy_weights(BOWL, BETA, **wrong)


def test_the_energy_sees_each_rows_own_context(generator: torch.Generator) -> None:
    samples, c = torch.randn(6, 9, 3, 4, generator=generator), torch.randn(6, 3, 4, generator=generator)
    best = best_of(samples, lambda x, c: (x - c).square().sum((1, 2)), c)
    distance = (samples - c[:, None]).square().sum((2, 3))
    assert torch.equal(best, samples[torch.arange(6), distance.argmin(1)])


def test_energies_of_the_wrong_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(2, 3\)"):
        best_of(torch.zeros(2, 3, 4), torch.zeros(2, 4))


def test_resampling_turns_samples_of_q_into_samples_of_the_target(mixture: GaussianMixture, generator: torch.Generator) -> None:
    pool = mixture.sample(4 * 50_000, generator).reshape(4, 50_000, 2)
    got = softmax_resample(pool, BOWL, BETA, 5000, generator=generator)
    target = mixture.tilted(BOWL, BETA)
    want = target.sample(200_000, generator)
    assert got.shape == (4, 5000, 2)
    torch.testing.assert_close(got.flatten(0, 1).mean(0), want.mean(0), atol=0.05, rtol=0)
    torch.testing.assert_close(got.flatten(0, 1).T.cov(), want.T.cov(), atol=0.08, rtol=0)


def test_draws_follow_softmax_probabilities_row_by_row(generator: torch.Generator) -> None:
    energies = torch.tensor([[0.0, 1.0, 2.0], [3.0, 0.0, 0.0]])
    samples = torch.arange(3.0).expand(2, 3)[..., None]
    drawn = softmax_resample(samples, energies, 2.0, 100_000, generator=generator)
    shares = torch.stack([(drawn == i).double().mean((1, 2)) for i in range(3)], 1)
    torch.testing.assert_close(shares, torch.softmax(-2 * energies, 1), atol=0.01, rtol=0)


def test_resampling_takes_context_and_generator(generator: torch.Generator) -> None:
    samples, c = torch.randn(3, 8, 2, generator=generator), 100 * torch.eye(3)[:, :2]
    energy = lambda x, c: -(x * c).sum(1)  # noqa: E731
    draws = [softmax_resample(samples, energy, 9.0, 4, c=c, generator=torch.Generator().manual_seed(1)) for _ in range(2)]
    assert torch.equal(*draws)
    assert (draws[0][0, :, 0] == samples[0, :, 0].max()).all()
    assert (draws[0][1, :, 1] == samples[1, :, 1].max()).all()


def test_weighted_data_are_the_target(mixture: GaussianMixture, generator: torch.Generator) -> None:
    x0 = mixture.sample(100_000, generator)
    w = energy_weights(BOWL, BETA)(x0, None)
    want = mixture.tilted(BOWL, BETA).sample(200_000, generator).mean(0)
    torch.testing.assert_close(w.mean(), torch.ones(()))
    torch.testing.assert_close((w[:, None] * x0).mean(0), want, atol=0.03, rtol=0)


def test_a_weighted_loss_is_least_at_the_denoiser_of_the_target(mixture: GaussianMixture, generator: torch.Generator) -> None:
    """Among c D_q + (1 - c) D_p, with D_q the plain and D_p the tilted denoiser, the loss picks D_p."""
    from egd.schedules import VPLinear

    schedule, t = VPLinear(), torch.full((100_000,), 0.3)
    x0 = mixture.sample(len(t), generator)
    noise = torch.randn(x0.shape, generator=generator)
    x = schedule.alpha(t)[:, None] * x0 + schedule.sigma(t)[:, None] * noise
    plain, tilted = mixture.denoise(schedule, x, t), mixture.tilted(BOWL, BETA).denoise(schedule, x, t)
    w = energy_weights(BOWL, BETA)(x0, None)[:, None]
    # the minimiser over c of sum w (x0 - tilted - c (plain - tilted))^2
    c = (w * (x0 - tilted) * (plain - tilted)).sum() / (w * (plain - tilted).square()).sum()
    assert (plain - tilted).abs().mean() > 0.05
    assert abs(float(c)) < 0.05


def per_context(x0: Tensor, c: Tensor) -> Tensor:
    return x0[:, 0] + 1000 * c[:, 0]


def test_groups_are_normalised_by_themselves(generator: torch.Generator) -> None:
    x0 = torch.randn(12, 1, generator=generator)
    c = torch.arange(3.0).repeat_interleave(4)[:, None]
    w = energy_weights(per_context, BETA, group=4)(x0, c)
    torch.testing.assert_close(w.reshape(3, 4), 4 * torch.softmax(-BETA * x0.reshape(3, 4), 1))
    whole = energy_weights(per_context, BETA)(x0, c)
    assert whole[4:].max() < 1e-9  # what the grouping is for
    with pytest.raises(ValueError, match="multiple of 5"):
        energy_weights(per_context, BETA, group=5)(x0, c)


def test_clipped_weights_keep_mean_one_and_lose_their_peaks(mixture: GaussianMixture, generator: torch.Generator) -> None:
    x0 = mixture.sample(1000, generator)
    plain, clipped = energy_weights(BOWL, 3.0)(x0, None), energy_weights(BOWL, 3.0, clip=5.0)(x0, None)
    torch.testing.assert_close(clipped.mean(), torch.ones(()))
    assert clipped.max() < 0.6 * plain.max()
    small = plain < 5
    torch.testing.assert_close(clipped[small] / plain[small], (clipped[small] / plain[small])[:1].expand(int(small.sum())))


def test_weights_carry_no_gradient(generator: torch.Generator) -> None:
    x0 = torch.randn(8, 2, generator=generator, requires_grad=True)
    assert not energy_weights(BOWL, BETA)(x0, None).requires_grad
