"""Conservative Q-learning: its terms against sums written out, and what they do."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn
from torch.distributions import Independent, Normal, TransformedDistribution
from torch.distributions.transforms import TanhTransform

from egd.checkpoint import load_checkpoint
from egd.training.batched import BatchedLearner
from rl.config import CriticConfig
from rl.critics import CQL
from rl.critics.base import CriticLearner
from rl.critics.choice import make_critic
from rl.data.transitions import Batch
from rl.parts.actors import TanhGaussianActor

SMALL: dict[str, Any] = {"width": 16, "layers": 2, "policy_width": 16, "policy_layers": 2, "actions": 3}


def batch(n: int = 5, states: int = 2, actions: int = 2) -> Batch:
    g = torch.Generator().manual_seed(3)
    state, after = (torch.randn(n, states, generator=g) for _ in range(2))
    action = 2 * torch.rand(n, actions, generator=g) - 1
    return Batch(state, action, torch.randn(n, generator=g), after, (torch.arange(n) % 2).float())


def critic(actions: int = 2, **settings: Any) -> CQL:
    torch.manual_seed(0)
    made = CQL(2, actions, **{**SMALL, **settings})
    with torch.no_grad():  # a target that is not the network itself
        for p in made.target.parameters():
            p.add_(0.1 * torch.randn(p.shape))
    return made


def log_density(actor: TanhGaussianActor, state: Tensor, action: Tensor) -> Tensor:
    """By torch's own distributions, one state (1, S) and one action (A,): ()"""
    mean, spread = actor.net(state)[0].chunk(2)
    normal = Independent(Normal(mean, (spread - 1).clamp(-20, 2).exp()), 1)
    return TransformedDistribution(normal, TanhTransform()).log_prob(action)


def test_the_actor_knows_the_densities_of_its_actions(generator: torch.Generator) -> None:
    actor = TanhGaussianActor(2, 3, width=16, layers=2)
    state = torch.randn(4, 2, generator=generator)
    actions, found = actor(state, torch.randn(4, 5, 3, generator=generator))
    wanted = [[float(log_density(actor, s[None], a).detach()) for a in own] for s, own in zip(state, actions, strict=True)]
    torch.testing.assert_close(found, torch.tensor(wanted), atol=2e-4, rtol=1e-4)
    torch.testing.assert_close(-actor.cost(state, actions[:, 0]), found[:, 0], atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(actor.mean(state), actor(state, torch.zeros(4, 1, 3))[0][:, 0])


@pytest.mark.parametrize("backup", [False, True])
@pytest.mark.parametrize("floor", [None, 0.05])
def test_the_loss_is_the_sum_written_out(backup: bool, floor: float | None, generator: torch.Generator) -> None:
    made = critic(alpha=2.5, max_target_backup=backup, gamma=0.9)
    b = batch()
    drawn = made.draw(b, generator, None if floor is None else torch.full((5,), floor))
    td, excess = [], []
    for i in range(5):
        s, after = b.state[i : i + 1], b.next_state[i : i + 1]
        q = lambda a, s=s: made.values.q(s, a[None])[:, 0]  # noqa: E731
        terms = [q(a) - math.log(0.25) for a in drawn.uniform[i]]
        for at, noise in ((s, drawn.noise), (after, drawn.next_noise)):
            for a in made.actor(at, noise[i : i + 1])[0][0]:
                value = q(a) if floor is None else q(a).clamp(min=floor)
                terms.append(value - log_density(made.actor, at, a))
        excess.append(torch.stack(terms).logsumexp(0) - q(b.action[i]))
        following = [made.q(after, a[None]) for a in made.actor(after, drawn.next_noise[i : i + 1])[0][0]]
        best = torch.stack(following).max() if backup else following[0][0]
        td.append((q(b.action[i]) - b.reward[i] - 0.9 * (1 - b.terminal[i]) * best).square())
    whole, metrics = made.critic_loss(drawn)
    torch.testing.assert_close(metrics["q_loss"], torch.stack(td).mean().detach(), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(metrics["conservative"], torch.stack(excess).mean().detach(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(whole.detach(), metrics["q_loss"] + metrics["v_loss"] + 2.5 * metrics["conservative"])


def test_importance_sampling_finds_the_integral(generator: torch.Generator) -> None:
    """log mean of exp Q / density over actions of any of the three kinds is log of the integral of exp Q over [-1, 1]."""
    made = critic(actions=1)
    made.actions = 4000
    with torch.no_grad():
        made.actor.net[-1].bias[1] += 1.5  # wide enough for weights of finite variance
    b = batch(3, actions=1)
    drawn = made.draw(b, generator)
    here, there = made.actor(b.state, drawn.noise), made.actor(b.next_state, drawn.next_noise)
    found = made.log_sum_exp(drawn, here, there) - math.log(3 * 4000)
    grid = torch.linspace(-1, 1, 2001)[:, None]
    for i in range(3):
        q = made.values.q(b.state[i : i + 1].expand(2001, -1), grid)
        torch.testing.assert_close(found[:, i], q.exp().mean(1).log() + math.log(2), atol=0.03, rtol=0)


def test_a_clip_bounds_the_conservative_term(generator: torch.Generator) -> None:
    bound = critic(clip_min=50.0)
    assert float(bound.loss(bound.draw(batch(), generator))[1]["conservative"]) == 50


def test_the_multiplier_grows_beyond_the_gap_and_shrinks_within_it(generator: torch.Generator) -> None:
    for gap, sign in ((-100.0, 1), (100.0, -1)):
        made = critic(gap=gap)
        before = float(made.multiplier().detach())
        assert before == pytest.approx(math.e)
        made.update_on(made.draw(batch(), generator))
        assert math.copysign(1, float(made.multiplier().detach()) - before) == sign


def test_the_temperature_steers_the_entropy(generator: torch.Generator) -> None:
    for target, sign in ((100.0, 1), (-100.0, -1)):
        made = critic(target_entropy=target)
        made.update_on(made.draw(batch(), generator))
        assert math.copysign(1, float(made.temperature().detach()) - 1) == sign


def test_the_actor_climbs_and_leaves_the_critic_alone(generator: torch.Generator) -> None:
    made = critic()
    loss, _ = made.actor_loss(made.draw(batch(), generator))
    loss.backward()
    assert all(p.grad is None for p in made.values.parameters())
    assert all(p.requires_grad for p in made.values.parameters())
    assert all(p.grad is not None for p in made.actor.parameters())


def test_all_parts_are_stepped_by_gradients_as_before_the_step(generator: torch.Generator) -> None:
    made = critic(lr=0.1, gap=1.0)
    drawn = made.draw(batch(), generator)
    assert isinstance(made.fit.module, nn.ModuleDict)
    wanted = {}
    for name, loss in made.losses(drawn)[0].items():
        wanted[name] = torch.autograd.grad(loss, [*made.fit.module[name].parameters()], retain_graph=True)
    assert wanted.keys() == {"critic", "actor", "temperature", "multiplier"}
    made.update_on(drawn)
    for name, gradients in wanted.items():
        for parameter, gradient in zip(made.fit.module[name].parameters(), gradients, strict=True):
            assert parameter.grad is not None
            torch.testing.assert_close(parameter.grad, gradient)


def half_seen(n: int = 512) -> Batch:
    """Bandit whose reward rises with the action, of which the data have the lower half."""
    g = torch.Generator().manual_seed(0)
    action = torch.rand(n, 1, generator=g) - 1
    state = torch.zeros(n, 2)
    return Batch(state, action, action[:, 0], state, torch.ones(n))


@pytest.mark.slow
def test_what_the_data_do_not_have_is_not_trusted() -> None:
    """Without the term, Q goes on rising beyond the data and the actor follows; with it, both turn back."""
    ends = {}
    for alpha in (0.0, 5.0):
        torch.manual_seed(0)
        made = CQL(2, 1, alpha=alpha, lr=3e-3, policy_lr=3e-3, polyak=0.05, **SMALL)
        g = torch.Generator().manual_seed(0)
        for _ in range(300):
            made.update_on(made.draw(half_seen()[torch.randint(512, (64,), generator=g)], g))
        q = made.values.q(torch.zeros(2, 2), torch.tensor([[-0.2], [0.9]])).mean(0)
        ends[alpha] = float((q[1] - q[0]).detach()), float(made.actor.mean(torch.zeros(1, 2)).detach())
    assert ends[0.0][0] > 0.2
    assert ends[0.0][1] > 0.3
    assert ends[5.0][0] < -1
    assert ends[5.0][1] < 0


@pytest.mark.slow
def test_v_is_q_at_the_actors_action() -> None:
    torch.manual_seed(0)
    made = CQL(2, 1, alpha=0.1, lr=3e-3, polyak=0.05, **SMALL)
    g = torch.Generator().manual_seed(0)
    for _ in range(600):
        made.update_on(made.draw(half_seen()[:64], g))
    states = torch.zeros(4000, 2)
    actions = made.actor(states, torch.randn(4000, 1, 1, generator=g))[0][:, 0]
    torch.testing.assert_close(made.v(states[:1])[0], made.q(states, actions).mean(), atol=0.1, rtol=0)


def test_it_goes_on_bit_for_bit() -> None:
    whole, half, again = (critic(gap=1.0) for _ in range(3))
    g = torch.Generator().manual_seed(1)
    for _ in range(6):
        whole.update_on(whole.draw(batch(), g))
    g.manual_seed(1)
    for _ in range(3):
        half.update_on(half.draw(batch(), g))
    again.load(half.state())
    for _ in range(3):
        again.update_on(again.draw(batch(), g))
    assert again.state().keys() == whole.state().keys()
    assert all(torch.equal(again.state()[name], tensor) for name, tensor in whole.state().items())
    assert again.state()["fit.step"] == 6
    assert not torch.equal(again.multiplier(), critic(gap=1.0).multiplier())


@pytest.mark.parametrize("floored", [False, True])
def test_critics_of_several_runs_take_their_steps_together(floored: bool) -> None:
    def learners() -> list[CriticLearner]:
        made = [critic(gap=1.0, lr=1e-2, policy_lr=1e-3, decay=True, steps=20) for _ in range(2)]
        floor = torch.zeros(5) if floored else None
        return [CriticLearner(one, lambda g, one=one: one.draw(batch(), g, floor)) for one in made]

    seeds = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    alone, together = learners(), learners()
    for learner, generator in zip(alone, seeds, strict=True):
        for _ in range(8):
            learner.update(generator)
    seeds = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    for learner, generator in zip(together, seeds, strict=True):
        learner.update(generator)
    batched = BatchedLearner(together, seeds)
    for _ in range(7):
        batched.update()
    batched.unstack()
    for one, other in zip(alone, together, strict=True):
        torch.testing.assert_close(other.state(), one.state(), atol=1e-5, rtol=1e-4)
    assert not torch.equal(alone[0].state()["fit.module.actor.net.0.weight"], alone[1].state()["fit.module.actor.net.0.weight"])


def test_the_actor_has_a_learning_rate_of_its_own(generator: torch.Generator) -> None:
    """Adam's first step is of the length of the rate, whatever the gradient's."""
    made = critic(gap=1.0, lr=1e-2, policy_lr=1e-4)
    parts: Any = made.fit.module
    before = {name: [p.detach().clone() for p in part.parameters()] for name, part in parts.items()}
    made.update_on(made.draw(batch(), generator))
    for name, rate in {"critic": 1e-2, "actor": 1e-4, "temperature": 1e-4, "multiplier": 1e-2}.items():
        moved = max(float((p - q).abs().max().detach()) for p, q in zip(parts[name].parameters(), before[name], strict=True))
        assert moved == pytest.approx(rate, rel=1e-2), name


def test_what_yaml_takes_for_text_is_a_number() -> None:
    config = CriticConfig(name="cql", **yaml.safe_load("{policy_lr: 1e-4, alpha: 2}"))
    made = make_critic(config, 2, 2, torch.device("cpu"))
    assert isinstance(config.settings["policy_lr"], str)
    assert isinstance(made, CQL)
    assert 1e-4 in {group["lr"] for group in made.fit.optimiser.param_groups}
    assert made.alpha == 2


CRITIC = ["--set", "critic={name: cql, actions: 2, policy_width: 16, policy_layers: 1}"]


def test_an_agent_of_its_own_and_guidance_share_what_is_trained(
    egd: Any, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EGD_STORE", str(tmp_path / "store"))
    result = egd("run", recipe, "--out", tmp_path / "guided", *CRITIC)
    assert result.exit_code == 0, result.output
    alone = tmp_path / "alone.yaml"
    alone.write_text("\n".join(line for line in recipe.read_text().splitlines() if not of_guidance(line)) + "\nagent: cql\n")
    result = egd("run", alone, "--out", tmp_path / "alone", *CRITIC)
    assert result.exit_code == 0, result.output
    run = "egd-maze2d-umaze-v0/seed-0"
    trained = [load_checkpoint(tmp_path / name / run / "checkpoints" / "critic.safetensors") for name in ("guided", "alone")]
    assert all(torch.equal(tensor, trained[1][0][name]) for name, tensor in trained[0][0].items())
    summary = (tmp_path / "alone" / run / "summary.json").read_text()
    assert '"headline": "policy"' in summary
    assert '"critic": "' in summary  # from the store


def of_guidance(line: str) -> bool:
    heads = ("agent", "denoiser", "energy_network", "calibration", "guidance", "variants", "  literal", "sampler", "budgets")
    return line.startswith(heads)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["agent=cql", "critic.name=iql"], "critic.name"),
        (["critic.name=cql", "critic.alhpa=1"], "alpha"),
        (["critic.name=cql", "critic.actions=0"], "critic.actions"),
        (["critic.name=cql", "critic.policy_activation=sine"], "critic.policy_activation"),
    ],
)
def test_settings_that_do_not_fit_are_named(egd: Any, recipe: Path, tmp_path: Path, settings: list[str], said: str) -> None:
    if "agent=cql" in settings:
        recipe.write_text("\n".join(line for line in recipe.read_text().splitlines() if not of_guidance(line)))
    result = egd("run", recipe, "--out", tmp_path / "out", *(part for s in settings for part in ("--set", s)))
    assert result.exit_code == 2
    assert said in result.output
