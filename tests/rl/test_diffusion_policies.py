"""Policies that a critic trains, against answers known in closed form: Diffusion-QL, EDP and SRPO."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

from egd.schedules import VPLinear
from egd.tensors import value_and_grad
from egd.training.batched import BatchedLearner
from egd.training.learners import Fit
from egd.types import Schedule
from rl.agents import AGENTS
from rl.agents.aepo import AEPO
from rl.agents.base import Agent
from rl.agents.srpo import RegularisationConfig, ScoreRegularised
from rl.data.transitions import Batch, OfflineData
from rl.parts.diffusion_actor import DiffusionActor, normalised_q_loss

CPU = torch.device("cpu")
TINY = {
    "experiment": "offline_rl",
    "task": "hopper-medium",
    "denoiser": {"width": 16, "blocks": 2, "steps": 6, "batch": 16},
    "critic": {"width": 16, "layers": 2, "steps": 6, "batch": 16},
}
ACTOR = {"actor": {"width": 16, "layers": 2, "steps": 6, "batch": 16}}
IQL = {"critic": {**TINY["critic"], "name": "iql"}}  # type: ignore[dict-item]
AWR = {"improvement": {"extraction": "awr"}}
KINDS: dict[str, dict[str, Any]] = {
    "diffusion_ql": {},
    "diffusion_ql with max-Q backup": {"improvement": {"backup": 3}},
    "diffusion_ql on iql": IQL,
    "edp": {},
    "edp on iql": IQL,
    "edp on iql by awr": IQL | AWR,
    "srpo": ACTOR,
}
EVERY = pytest.mark.parametrize("name", KINDS)


@pytest.fixture
def float64() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def data(action: Tensor | None = None, reward: Tensor | None = None) -> OfflineData:
    """Transitions that never end; by default of random actions in [-1, 1]^2. One state entry for each action entry."""
    torch.manual_seed(0)
    action = torch.rand(500, 2) * 2 - 1 if action is None else action
    n, dim = action.shape
    state, reward = torch.randn(n, dim), torch.randn(n) if reward is None else reward
    rows = Batch(state, action, reward, torch.randn(n, dim), torch.zeros(n))
    edge = torch.ones(dim)
    return OfflineData(rows, torch.zeros(dim), edge, -edge, edge, 0.0, 1)


def agent(name: str, given: OfflineData | None = None, **over: Any) -> Any:
    kind = AGENTS[name.partition(" ")[0]]
    settings = {"agent": name.partition(" ")[0], **TINY, **KINDS.get(name, {})} | over
    return kind(kind.Config.model_validate(settings), given or data(), CPU)


def train(made: Agent, phase: str, steps: int, seed: int = 0) -> Any:
    """That many updates of a phase; its learner."""
    (learner,) = (p.learner for p in made.phases() if p.name == phase)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        learner.update(generator)
    return learner


def act(made: Agent, states: Tensor, seed: int = 0) -> Tensor:
    policy = made.policy("policy", [], torch.Generator().manual_seed(seed))
    return policy(states, torch.zeros(len(states), dtype=torch.long))


# -- known critics and behaviour policies ------------------------------------------------------------------------


class Parabola(nn.Module):
    """Two members, both Q(s, a) = 100 - |a - c|^2: divided by its own size it is all but -|a - c|^2 / 100."""

    members = 2

    def __init__(self, c: float) -> None:
        super().__init__()
        self.c = nn.Parameter(torch.tensor(c))

    def forward(self, state: Tensor, action: Tensor) -> Tensor:
        q = 100 - (action - self.c).square().sum(1)
        return torch.stack([q, q])


def knowing(made: Any, c: float) -> Any:
    """The agent's learner of its policy, with that critic."""
    q = Parabola(c)
    made.critic = SimpleNamespace(values=SimpleNamespace(q=q), q=lambda s, a: q(s, a)[0], v=lambda s: 0 * s[:, 0])
    return policy_learner(made)


def policy_learner(made: Any) -> DiffusionActor:
    """The learner of the policy, apart from the critic's."""
    return DiffusionActor(made.behaviour, made.critic, made.config, made.policy_part.improvement_loss)


def gaussian(n: int = 4000, mean: float = -0.2, std: float = 0.25) -> OfflineData:
    torch.manual_seed(1)
    return data((mean + std * torch.randn(n, 1)).clamp(-1, 1))


def fit(steps: int, prediction: str = "sample") -> dict[str, Any]:
    settings = {"width": 48, "blocks": 2, "steps": steps, "batch": 256, "lr": 3e-3, "ema": 0.98}
    return {"denoiser": {**settings, "prediction": prediction}}


FREE = {"clip_x0": False}


def updates(learner: Any, steps: int) -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        learner.update(generator)


def exact_denoiser(schedule: Schedule, mean: float = -0.2, std: float = 0.25) -> Any:
    """Of ``gaussian``."""

    def denoiser(x: Tensor, t: Tensor, c: Any = None) -> Tensor:
        alpha, sigma = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
        return mean + alpha * std**2 / (alpha**2 * std**2 + sigma**2) * (x - alpha * mean)

    return denoiser


COARSE = {"steps": 4, "spacing": "time"}
FINE = {"name": "dpm_solver_pp_2m", "steps": 15, "end": 1e-3, "spacing": "log_snr"}


@pytest.mark.parametrize(
    ("kind", "sampler"),
    [
        pytest.param("diffusion_ql", {}, marks=pytest.mark.slow),
        pytest.param("diffusion_ql", FINE, marks=pytest.mark.slow),
        ("edp", FINE),
    ],
)
def test_without_a_critic_the_policy_is_the_behaviour_policy(kind: str, sampler: dict[str, Any]) -> None:
    """As the sampler draws it: five steps of DDPM make a Gaussian of 0.25 one of 0.11."""
    made = agent(kind, gaussian(), **fit(700, "epsilon"), improvement={"eta": 0}, acting={"candidates": 1}, sampler=sampler)
    updates(knowing(made, 0.8), 700)
    actions, walk = act(made, torch.randn(4000, 1)), made.behaviour.sampler
    want = walk.draw(exact_denoiser(walk.schedule), None, 4000, torch.Generator().manual_seed(1))
    assert float(actions.mean()) == pytest.approx(float(want.mean()), abs=0.03)
    assert float(actions.std()) == pytest.approx(float(want.std()), abs=0.03)
    assert float(want.std()) == pytest.approx(0.25 if sampler else 0.11, abs=0.02)


@pytest.mark.parametrize("kind", [pytest.param("diffusion_ql", marks=pytest.mark.slow), "edp"])
def test_with_a_strong_one_it_is_the_action_of_highest_q(kind: str) -> None:
    made = agent(kind, gaussian(), **fit(300), improvement={"eta": 1e5}, acting={"candidates": 1})
    updates(knowing(made, 0.5), 300)
    actions = act(made, torch.randn(500, 1))
    assert float((actions - 0.5).abs().mean()) < 0.05


WEIGHT = {"sample": torch.ones_like, "v_prediction": lambda sigma: sigma**-2}
"""Of |D - x_0|^2 in the loss of each prediction."""


@pytest.mark.parametrize("prediction", WEIGHT)
def test_edp_balances_denoiser_and_critic_as_its_loss_says(prediction: str) -> None:
    """Its loss is a parabola in D at every (x_t, t): weight (D - D*)^2 + eta / 100 (D - c)^2, D* the denoiser of the data."""
    c, eta = 0.6, 100.0
    made = agent("edp", gaussian(), **fit(500, prediction), improvement={"eta": eta, **FREE})
    updates(knowing(made, c), 500)
    schedule, denoiser = made.behaviour.schedule, made.behaviour.denoiser(clip=False)
    for time in (0.25, 0.4, 0.6):
        t = torch.full((200,), time)
        alpha, sigma = schedule.alpha(t)[:1], schedule.sigma(t)[:1]
        x = alpha * -0.2 + torch.hypot(alpha * 0.25, sigma) * torch.linspace(-1.5, 1.5, 200)[:, None]
        exact, weight = exact_denoiser(schedule)(x, t), WEIGHT[prediction](sigma)
        want = (weight * exact + eta / 100 * c) / (weight + eta / 100)
        assert float((want - exact).abs().mean()) > 0.2
        got = denoiser(x, t, torch.zeros(200, 1)).detach()
        torch.testing.assert_close(got, want, rtol=0, atol=0.06)


def test_edp_by_advantage_weighted_regression_is_the_tilted_behaviour_policy() -> None:
    """For Q - V = a the weights exp(3 (Q - V)) move N(-0.2, 0.25^2) by 3 x 0.25^2 and leave its spread."""
    improvement = {"eta": 1e3, "extraction": "awr"}
    made = agent("edp", gaussian(), **fit(500), improvement=improvement, acting={"candidates": 1}, sampler=FINE)
    learner = knowing(made, 0.0)
    made.critic.q = lambda s, a: a[:, 0]
    updates(learner, 500)
    actions = act(made, torch.randn(4000, 1))
    assert float(actions.mean()) == pytest.approx(-0.2 + 3 * 0.25**2, abs=0.05)
    assert float(actions.std()) == pytest.approx(0.25, abs=0.05)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", ["diffusion_ql", "edp"])
@pytest.mark.parametrize("sampler", [{}, {"name": "dpm_solver_pp_2m", "steps": 4, "end": 1e-3}], ids=["own", "dpm"])
def test_gradients_reach_the_network_through_all_of_the_actions(name: str, sampler: dict[str, Any]) -> None:
    """Against central differences, along random directions of weights and of actions."""
    made = agent(name, improvement=FREE, sampler=sampler)
    network, rng = made.behaviour.fit.module, torch.Generator().manual_seed(0)
    for p in network.parameters():
        p.data += 0.1 * torch.randn(p.shape, generator=rng)
    state, x, t = torch.randn(5, 2, generator=rng), torch.randn(5, 2, generator=rng), torch.full((5,), 0.4)
    towards = torch.randn(5, 2, generator=rng)

    def total() -> Tensor:
        if name == "edp":
            return (towards * made.approximated(x, t, network(x, t, state))).sum()
        return (towards * made.sampled(state, torch.Generator().manual_seed(7))).sum()

    grads = torch.autograd.grad(total(), list(network.parameters()))
    h, directions = 1e-5, [torch.randn(p.shape, generator=rng) for p in network.parameters()]
    with torch.no_grad():
        values = []
        for step in (h, -2 * h):
            for p, d in zip(network.parameters(), directions, strict=True):
                p.add_(step * d)
            values.append(float(total()))
    got = float(sum((s * d).sum() for s, d in zip(grads, directions, strict=True)))
    assert got == pytest.approx((values[0] - values[1]) / (2 * h), rel=1e-6)


def test_each_term_is_scaled_by_the_other_member() -> None:
    made = agent("diffusion_ql")
    batch = made.data.sample(32, torch.Generator().manual_seed(0))
    q = made.critic.values.q(batch.state, batch.action).detach()
    for judge in (0, 1):
        got, _ = normalised_q_loss(made.critic, batch.state, batch.action, torch.tensor([judge]))
        torch.testing.assert_close(got, -q[judge].mean() / q[1 - judge].abs().mean())
        _, grad = value_and_grad(lambda a, judge=judge: made.critic.values.q(batch.state, a)[judge], batch.action)
        action = batch.action.clone().requires_grad_()
        normalised_q_loss(made.critic, batch.state, action, torch.tensor([judge]))[0].backward()
        assert action.grad is not None
        torch.testing.assert_close(action.grad, -grad / 32 / q[1 - judge].abs().mean())  # the unit is a number


def test_the_critic_is_left_alone_by_the_policy_and_gradients_are_clipped() -> None:
    made = agent("diffusion_ql", improvement={"clip": 1e-3, "eta": 50.0})
    learner = policy_learner(made)
    learner.update(torch.Generator().manual_seed(0))
    assert all(p.grad is None and p.requires_grad for p in made.critic.values.parameters())
    (both,) = (p.learner for p in made.phases())
    both.update(torch.Generator().manual_seed(0))
    for fit in (made.behaviour.fit, made.critic.fit):
        norm = torch.stack([p.grad.norm() for p in fit.parameters() if p.grad is not None]).norm()
        assert 0 < float(norm) < 1.001e-3
    unclipped = agent("diffusion_ql on iql", improvement={"clip": 1.0})
    assert unclipped.critic.fit.clip == 0  # so that it is the critic of every other method


def test_targets_ask_the_average_and_the_best_of_several() -> None:
    made = agent("diffusion_ql", improvement={"backup": 16})
    both = train(made, "policy", 3)
    state, generator = made.data.transitions.state[:64], torch.Generator()
    first = both.policy.next_actions(state, generator.manual_seed(0))
    for p in made.behaviour.fit.module.parameters():
        p.data += 1.0
    torch.testing.assert_close(both.policy.next_actions(state, generator.manual_seed(0)), first, rtol=0, atol=0)
    every = made.behaviour.actions(state, 16, generator.manual_seed(0), clip=True)
    q = made.critic.q(state.repeat_interleave(16, 0), every.flatten(0, 1)).reshape(64, 16)
    torch.testing.assert_close(made.critic.q(state, first), q.amax(1))


@pytest.mark.slow
def test_the_critic_learns_the_value_of_the_policy_itself() -> None:
    """r = a, gamma 0.5, a policy that imitates: Q(s, a) = a + 0.5 E[a] / (1 - 0.5) whatever the state."""
    torch.manual_seed(1)
    action = torch.where(torch.rand(2000, 1) < 0.7, 0.6, -0.4) + 0.02 * torch.randn(2000, 1)  # a mean of 0.3
    critic = {"width": 32, "layers": 2, "gamma": 0.5, "polyak": 0.05, "lr": 3e-3, "decay": True}
    made = agent("edp", data(action, action[:, 0]), **fit(300), critic=critic, sampler=COARSE, improvement={"eta": 0})
    train(made, "policy", 300)
    rows = made.data.transitions
    q = made.critic.q(rows.state[:500], rows.action[:500]).detach()
    assert float((q - (rows.reward[:500] + 0.3)).abs().mean()) < 0.06


def test_candidates_are_chosen_by_their_value() -> None:
    kept = {"one": {"candidates": 1}, "softmax": {"beta": 30.0}, "best": {"selection": "best"}}
    values = {}
    for name, acting in kept.items():
        made = agent("edp", acting=acting)
        train(made, "policy", 6)
        states = made.data.transitions.state[:200]
        values[name] = float(made.critic.q(states, act(made, states)).detach().mean())
    assert values["one"] < values["softmax"] < values["best"]


# -- SRPO --------------------------------------------------------------------------------------------------------

STD = 0.4


def behaviour_mean(state: Tensor) -> Tensor:
    return 0.3 * state


def score_regularised(settings: RegularisationConfig, actor: nn.Module, lr: float = 3e-3, steps: int = 500) -> ScoreRegularised:
    """Towards Q = -2 |a - 0.6|^2, mu = N(0.3 s, 0.16): everything exact but the actor."""
    schedule = VPLinear()

    def denoiser(x: Tensor, t: Tensor, c: Any) -> Tensor:
        alpha, sigma = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
        m = behaviour_mean(c)
        return m + alpha * STD**2 / (alpha**2 * STD**2 + sigma**2) * (x - alpha * m)

    def sample(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        states = torch.rand(n, 1, generator=generator) * 2 - 1
        return states, states

    critic: Any = SimpleNamespace(q=lambda s, a: -2 * (a - 0.6).square().sum(1))
    fit = Fit(actor, lr=lr, steps=steps, decay=True)
    return ScoreRegularised(fit, sample, critic, denoiser, schedule, settings, batch=512)


def stiffness(settings: RegularisationConfig) -> float:
    """kappa of E_t,eps[w (eps(a_t, t) - eps)] = kappa (a - m): E_t[w alpha sigma / (alpha^2 std^2 + sigma^2)]."""
    t, schedule = torch.linspace(settings.t_min, settings.t_max, 20_001), VPLinear()
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    w = {"variance": sigma**2, "constant": 1.0, "score": alpha / sigma}[settings.weight]
    return float((w * alpha * sigma / (alpha**2 * STD**2 + sigma**2)).mean())


@pytest.mark.parametrize("settings", [{"beta": 0.1}, {"beta": 0.5}, {"beta": 0.3, "weight": "constant"}], ids=str)
def test_srpo_ends_where_the_critic_balances_the_score(settings: dict[str, Any]) -> None:
    """beta 4 (0.6 - a) = kappa (a - m)."""
    torch.manual_seed(0)
    config = RegularisationConfig(**settings)
    actor = nn.Sequential(nn.Linear(1, 32), nn.SiLU(), nn.Linear(32, 1), nn.Tanh())
    updates(score_regularised(config, actor), 500)
    states = torch.linspace(-0.9, 0.9, 50)[:, None]
    pull, push = stiffness(config), 4 * config.beta
    want = (push * 0.6 + pull * behaviour_mean(states)) / (push + pull)
    torch.testing.assert_close(actor(states).detach(), want, rtol=0, atol=0.03)


@pytest.mark.usefixtures("float64")
def test_srpo_at_low_noise_is_policy_improvement_regularised_by_the_kl_divergence() -> None:
    """With w = alpha / sigma and t -> 0 the gradient vanishes at the mode of mu(a|s) exp(beta Q(s, a))."""
    config = RegularisationConfig(weight="score", t_min=1e-4, t_max=2e-4, beta=0.7)
    states = torch.linspace(-0.9, 0.9, 8)[:, None]
    mode = (4 * config.beta * 0.6 + behaviour_mean(states) / STD**2) / (4 * config.beta + 1 / STD**2)
    learner = score_regularised(config, Constant(mode))
    t, noise = torch.full((8,), 1.5e-4), torch.randn(8, 1)
    both_signs = (states.repeat(2, 1), t.repeat(2), torch.cat([noise, -noise]))  # the score is linear: their mean is exact
    loss, metrics = learner.loss(both_signs)
    loss.backward()
    (grad,) = (p.grad for p in learner.fit.module.parameters())
    assert grad is not None
    assert float(grad.abs().max()) < 1e-3 * float(metrics["push"])


class Constant(nn.Module):
    """These actions (B, A), whatever the states, as often as there are states for."""

    def __init__(self, action: Tensor) -> None:
        super().__init__()
        self.action = nn.Parameter(action)

    def forward(self, state: Tensor) -> Tensor:
        return self.action.repeat(len(state) // len(self.action), 1)


def test_a_unit_gradient_takes_the_unit_out_of_beta() -> None:
    config = RegularisationConfig(unit_gradient=True, beta=0.2)
    learner = score_regularised(config, Constant(torch.zeros(1, 1)))
    _, metrics = learner.loss(learner.draw(torch.Generator().manual_seed(0)))
    assert float(metrics["push"]) == pytest.approx(0.2)


def test_srpo_acts_without_chance_and_within_the_range() -> None:
    made = agent("srpo")
    for phase in ("denoiser", "critic", "policy"):
        train(made, phase, 6)
    states = 100 * torch.randn(20, 2)
    assert torch.equal(act(made, states, 0), act(made, states, 1))
    assert float(act(made, states).abs().max()) <= 1


# -- all of them -------------------------------------------------------------------------------------------------


@EVERY
def test_every_phase_goes_on_bit_for_bit(name: str) -> None:
    whole, half, again = agent(name), agent(name), agent(name)
    for phases in zip(*(made.phases() for made in (whole, half, again)), strict=True):
        one, first, second = (phase.learner for phase in phases)
        generators = [torch.Generator().manual_seed(3) for _ in range(2)]
        for _ in range(6):
            one.update(generators[0])
        for _ in range(2):
            first.update(generators[1])
        second.load({key: value.clone() for key, value in first.state().items()})
        for _ in range(4):
            second.update(generators[1])
        state = second.state()
        assert state.keys() == one.state().keys()
        for key, tensor in one.state().items():
            assert torch.equal(state[key], tensor), key
            assert bool(tensor.isfinite().all())
        first.load(state)
    states = whole.data.transitions.state[:8]
    assert torch.equal(act(whole, states), act(again, states))


@pytest.mark.parametrize("name", ["srpo", "edp on iql", "edp on iql by awr"])
def test_many_runs_at_once_are_those_runs(name: str) -> None:
    def learners() -> tuple[list[Agent], list[Any]]:
        agents = [agent(name, seed=seed) for seed in (0, 1)]
        for made in agents:
            for phase in made.phases()[:-1]:
                train(made, phase.name, 3, made.config.seed)
        return agents, [made.phases()[-1].learner for made in agents]

    (agents, together), (_, apart) = learners(), learners()
    generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    batched = BatchedLearner(together, generators)
    for _ in range(4):
        batched.update()
    batched.unstack()
    for seed, learner in enumerate(apart):
        generator = torch.Generator().manual_seed(seed)
        for _ in range(4):
            learner.update(generator)
        for one, other in zip(together[seed].fit.parameters(), learner.fit.parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert len(agents) == 2


def cache_key(made: Agent) -> dict[str, Any]:
    return {phase.name: phase.cache_key for phase in made.phases()}


def test_denoiser_and_critic_are_those_of_every_other_method() -> None:
    aepo = cache_key(AEPO(AEPO.Config.model_validate(TINY), data(), CPU))
    srpo = cache_key(agent("srpo"))
    assert srpo["denoiser"] == aepo["denoiser"]
    assert srpo["critic"] == aepo["critic"]
    for name in ("edp on iql", "edp on iql by awr", "diffusion_ql on iql"):
        assert cache_key(agent(name))["critic"] == aepo["critic"]
    policies = [cache_key(agent(name))["policy"] for name in KINDS]
    assert all(one != other for i, one in enumerate(policies) for other in policies[:i])


def test_what_only_acts_leaves_the_trained_policy_as_it_is() -> None:
    acting = {"candidates": 3, "selection": "best", "beta": 2.0}
    assert cache_key(agent("edp"))["policy"] == cache_key(agent("edp", acting=acting))["policy"]
    assert cache_key(agent("edp"))["policy"] != cache_key(agent("edp", improvement={"eta": 2.0}))["policy"]


def test_unless_the_recipe_says_otherwise_diffusion_ql_takes_five_ddpm_steps() -> None:
    made = agent("diffusion_ql")
    torch.testing.assert_close(made.behaviour.sampler.times, torch.tensor([1.0, 0.8, 0.6, 0.4, 0.2, 0.0]))
    t = made.behaviour.sampler.times[:-1]
    steps = torch.arange(5, 0, -1) / 5  # the paper's alpha_bar_t = exp(-beta_min t / T - (beta_max - beta_min) t^2 / 2 T^2)
    torch.testing.assert_close(made.behaviour.schedule.alpha(t) ** 2, torch.exp(-0.1 * steps - 9.9 * steps**2 / 2))


# -- from a recipe -----------------------------------------------------------------------------------------------


@pytest.fixture
def recipe_of(recipe: Path) -> Any:
    """The tiny recipe with these methods."""

    def write(methods: dict[str, Any]) -> Path:
        tree = yaml.safe_load(recipe.read_text())
        for key in ("agent", "sampler", "guidance", "variants", "energy_network", "calibration", "budgets"):
            tree.pop(key)
        recipe.write_text(yaml.safe_dump({**tree, **ACTOR, "methods": methods}))
        return recipe

    return write


def test_recipes_name_them_and_summaries_have_their_one_policy(egd: Any, recipe_of: Any, tmp_path: Path) -> None:
    methods = {
        "dql": {"agent": "diffusion_ql", "sampler": {"steps": 2}, "acting": {"candidates": 3}, "evaluation": {"every": 20}},
        "edp": {"agent": "edp", "sampler": {"steps": 2}, "acting": {"candidates": 3, "selection": "best"}},
        "edp_iql": {"agent": "edp", "critic": {"name": "iql"}, "sampler": {"steps": 2}, **AWR},
        "srpo": {"agent": "srpo"},
    }
    result = egd("run", recipe_of(methods), "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    phases = {"dql": ["policy"], "edp": ["policy"], "edp_iql": ["critic", "policy"], "srpo": ["denoiser", "critic", "policy"]}
    for name, trained in phases.items():
        run = tmp_path / "out" / "egd-maze2d-umaze-v0" / name / "seed-0"
        summary = json.loads((run / "summary.json").read_text())
        assert summary["headline"] == "policy"
        assert set(summary["policies"]) == {"policy"}
        assert summary["policies"]["policy"]["episodes"] == 2
        assert [path.stem for path in sorted((run / "checkpoints").glob("*"))] == sorted(trained)
        steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert {row["phase"] for row in steps} == set(trained)
    notes = json.loads((tmp_path / "out" / "egd-maze2d-umaze-v0" / "dql" / "seed-0" / "summary.json").read_text())
    assert [(note["phase"], note["step"]) for note in notes["evaluations"]] == [("policy", 20), ("policy", 30)]


STUBBORN = """
from egd.samplers import ddim


def stubborn(denoiser, schedule, x, times, c=None, *, generator=None):
    return ddim(denoiser, schedule, x, times, c).detach()
"""
WRONG = {
    "critic.name: no": ("diffusion_ql", "critic.name=isql"),
    "critic.name": ("srpo", "critic.name=isql"),
    "sampler.name": ("diffusion_ql", "sampler.name=STUBBORN:stubborn"),
    "improvement.eta": ("edp", "improvement.eta=-1"),
    "improvement.extraction": ("edp", "improvement.extraction=ppo"),
    "unknown key": ("diffusion_ql", "improvement.extraction=awr"),
    "acting.selection": ("edp", "acting.selection=smc"),
    "regularisation.t_min": ("srpo", "regularisation.t_min=0.99"),
    "actor.name": ("srpo", "actor.name=gaussian"),
}


@pytest.mark.parametrize(("key", "wrong"), WRONG.items(), ids=WRONG)
def test_bad_settings_are_refused_before_training(
    egd: Any, recipe_of: Any, tmp_path: Path, key: str, wrong: tuple[str, str]
) -> None:
    (tmp_path / "stubborn.py").write_text(STUBBORN)
    setting = wrong[1].replace("STUBBORN", str(tmp_path / "stubborn.py"))
    result = egd("run", recipe_of({"m": {"agent": wrong[0]}}), "--out", tmp_path / "out", "--set", setting)
    assert result.exit_code == 2
    assert key.partition(":")[0] in result.output
    assert not (tmp_path / "out").exists()
