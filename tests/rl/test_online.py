"""Offline to online: one loop, whose variants differ in the shares of a batch and in the generator."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from egd.config.base import ComponentConfig
from egd.errors import UserError
from egd.schedules import EDM, VPLinear
from egd.training.times import LogNormalTimes
from rl.critics.cal_ql import returns_to_go
from rl.data.transitions import Batch, OfflineData
from rl.online import terminations
from rl.online.choice import make_generator
from rl.online.config import OnlineConfig
from rl.online.generators.base import Generator, GeneratorContext
from rl.online.generators.edis import LogWeights, RatioConfig, effective_share
from rl.online.learner import OnlineLearner
from rl.online.replay import Replay
from rl.online.replay_mixture import ReplayMixture
from rl.online.resumable_env import ResumableEnv
from rl.online.transition_codec import TransitionCodec
from rl.tasks import find_task
from tests.rl.test_run import SEED0, assert_same_run

SMALL: dict[str, Any] = {
    "reach": 10,
    "refresh_steps": 5,
    "samples": 64,
    "denoiser": {"width": 16, "blocks": 2, "steps": 20, "batch": 32},
    "sampler": {"steps": 3},
}
RATIO = {"steps": 5, "width": 16, "batch": 32}
EDIS = SMALL | {"name": "edis", "ratio": RATIO, "energy": "cep", "energy_network": {"steps": 5, "width": 16, "batch": 32}}
HALF = {"online": 0.5, "offline": 0.0, "generated": 0.5}


@pytest.fixture
def online(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe of a second that goes on online."""
    tree = yaml.safe_load(recipe.read_text())
    for key in ("denoiser", "energy_network", "calibration", "guidance", "variants", "sampler", "budgets"):
        del tree[key]
    tree["agent"] = "iql_online"
    tree["actor"] = {"width": 16, "steps": 10}
    tree["evaluation"] = {"episodes": 1, "envs": 1, "every": 25}
    tree["online"] = {"steps": 60, "start": 20, "refresh": 20, "batch": 16, "lr": 1e-3}
    recipe.write_text(yaml.safe_dump(tree))
    monkeypatch.setattr("rl.envs.maze2d.step_limit", lambda name: 17)
    return recipe


VARIANTS: dict[str, dict[str, Any]] = {
    "offline replay": {"online.shares.pooled": True},
    "unguided": {"online.shares": HALF, "online.generator": SMALL | {"name": "diffusion", "warm_start": False}},
    "edis": {
        "online.shares": HALF,
        "online.generator": EDIS | {"schedule": "vp_linear", "terms": {"state": 1, "action": 0.5, "transition": 1}},
    },
    "resampled": {"online.shares": HALF, "online.generator": {"name": "resampled", "ratio": RATIO, "online_share": 0.3}},
    "cal-ql": {
        "agent": "cal_ql",
        "online.shares": HALF,
        "online.generator": EDIS | {"energy": "second_order", "terminal": "computed"},
        "online_alpha": 0.5,
        "online.updates": 2,
    },
}


QUICK = ("edis", "resampled")


@pytest.mark.parametrize(
    "variant", [pytest.param(variant, marks=[pytest.mark.slow] * (variant not in QUICK)) for variant in VARIANTS]
)
def test_a_run_stopped_online_ends_as_one_never_stopped(
    egd: Any, online: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variant: str
) -> None:
    settings = [part for key, value in VARIANTS[variant].items() for part in ("--set", f"{key}={json.dumps(value)}")]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    result = egd("run", online, "--out", whole, *settings)
    assert result.exit_code == 0, result.output
    update = OnlineLearner.update

    def dies(self: OnlineLearner, generator: torch.Generator) -> Any:
        if self.step == 57:  # after the last refresh, in the middle of an episode
            raise KeyboardInterrupt
        return update(self, generator)

    with monkeypatch.context() as patch:
        patch.setattr(OnlineLearner, "update", dies)
        assert egd("run", online, "--out", stopped, *settings).exit_code != 0
    assert not (stopped / SEED0 / "summary.json").exists()
    result = egd("run", online, "--out", stopped, *settings, "--resume")
    assert result.exit_code == 0, result.output
    assert_same_run(whole / SEED0, stopped / SEED0)
    steps = [point["step"] for point in json.loads((whole / SEED0 / "summary.json").read_text())["evaluations"]]
    assert steps == [0, 25, 50, 60]
    assert egd("eval", whole / SEED0).exit_code == 0


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("online.shares.online=0.7", ["online.shares", "1.2", "sum to 1"]),
        ("online.shares={online: 0.5, offline: 0, generated: 0.5}", ["online", "no generator"]),
        ("critic.name=cql", ["critic.name", "'cql'", "use iql"]),
        ("online.generator=edit", ["online.generator", "no transition generator is called 'edit'", "edis"]),
        ("online.generator={name: edis, energy: ceb}", ["online.generator.energy", "'ceb'", "cep"]),
        ("online.generator={name: edis, energy: {name: cep, smaples: 3}}", ["'smaples'", "samples"]),
        ("online.generator={name: edis, denoiser: {width: -1}}", ["online.generator.denoiser.width", "-1 does not fit"]),
        ("online.generator={name: edis, terms: {state: 0}}", ["online.generator.terms", "weigh 0"]),
        (
            "online.generator={name: edis, energy: ratio, terms: {state: 1}, ratio: {actions: policy}}",
            ["leave out terms, ratio.actions"],
        ),
        ("online.generator={name: diffusion, online_share: 1.5}", ["online.generator.online_share", "1.5 does not fit"]),
        ("online.generator={name: edis, terms: {reward: 1}}", ["online.generator.terms", "does not fit"]),
        ("online.generator={name: edis, rule: {name: interval, start: 2}}", ["online.generator.rule"]),
        ("online.generator={name: diffusion, sampler: {spacing: karass}}", ["online.generator.sampler.spacing"]),
    ],
)
def test_bad_input_is_named_with_its_remedy(egd: Any, online: Path, tmp_path: Path, setting: str, words: list[str]) -> None:
    result = egd("run", online, "--out", tmp_path / "out", "--set", setting)
    assert result.exit_code == 2, result.output
    for word in words:
        assert word in result.output
    assert not (tmp_path / "out").exists()


def test_edis_tries_components_of_ones_own_before_anything_is_trained(egd: Any, online: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("class Mine:\n    def __call__(self, x, t, c=None):\n        raise RuntimeError('never')\n")
    settings = ["--set", f"online.generator={{name: edis, energy: '{file}:Mine'}}", "--set", f"online.shares={HALF}"]
    result = egd("run", online, "--out", tmp_path / "out", *settings)
    said = " ".join(result.output.split())
    assert result.exit_code == 2 and "online.generator.energy: " in said, result.output
    assert "RuntimeError: never (mine.py, line 3)" in said and not list((tmp_path / "out").rglob("checkpoints"))


def test_variants_share_the_offline_phases(egd: Any, online: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EGD_STORE", str(tmp_path / "store"))
    direct = EDIS | {"energy": "ratio"}  # a swap leaves how the other's weights are trained
    for variant, generator in (("unguided", SMALL | {"name": "diffusion"}), ("edis", direct)):
        chosen = {"online.shares": HALF, "online.generator": generator}
        settings = [part for key, value in chosen.items() for part in ("--set", f"{key}={json.dumps(value)}")]
        assert egd("run", online, "--out", tmp_path / variant, *settings).exit_code == 0
    reused = json.loads((tmp_path / "edis" / SEED0 / "summary.json").read_text())["reused"]
    assert set(reused) == {"critic", "policy", "generator"}


def test_a_strangers_generator_runs_from_a_recipe(egd: Any, online: Path, tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs/edis.md").read_text()
    mine = tmp_path / "mine.py"
    mine.write_text(text.partition("```python\n")[2].partition("```")[0])
    generator = json.dumps({"name": f"{mine}:Newest", "window": 7})
    settings = ["--set", f"online.generator={generator}", "--set", f"online.shares={json.dumps(HALF)}"]
    result = egd("run", online, "--out", tmp_path / "out", *settings)
    assert result.exit_code == 0, result.output
    result = egd("run", online, "--out", tmp_path / "no", "--set", f"online.generator={mine}:GeneratorContext")
    assert result.exit_code == 2
    assert "online.generator" in result.output


# -- the loop ----------------------------------------------------------------------------------------------------------


def transitions(n: int, seed: int = 0) -> Batch:
    g = torch.Generator().manual_seed(seed)
    state = torch.randn(n, 3, generator=g)
    action = torch.rand(n, 2, generator=g) * 2 - 1
    return Batch(state, action, torch.randn(n, generator=g), state + 1, torch.zeros(n))


def data_of(rows: Batch) -> OfflineData:
    s, one = rows.state.shape[1], torch.ones(rows.action.shape[1])
    return OfflineData(rows, torch.zeros(s), torch.ones(s), -one, one, 0.0, 1)


def marked(n: int, mark: float) -> Batch:
    rows = transitions(n)
    return Batch(rows.state, rows.action, torch.full((n,), mark), rows.next_state, rows.terminal)


class Fixed(Generator):
    def refresh(self, online: Replay, generator: torch.Generator) -> dict[str, Tensor]:
        return {}

    def sample(self, n: int, generator: torch.Generator) -> Batch:
        return marked(n, 3.0)


@pytest.mark.parametrize("shares", [(1, 0, 0), (0.5, 0.5, 0), (0.5, 0, 0.5), (0.25, 0.5, 0.25)])
def test_a_batch_has_its_shares(shares: tuple[float, float, float], generator: torch.Generator) -> None:
    class Agent:
        data, device = data_of(marked(50, 2.0)), torch.device("cpu")

    names = ("online", "offline", "generated")
    config = OnlineConfig.model_validate(
        {"steps": 50, "batch": 64, "shares": dict(zip(names, shares, strict=True)), "generator": "fixed"}
    )
    learner = OnlineLearner(Agent(), config, None, Fixed())  # type: ignore[arg-type]
    rows = marked(50, 1.0)
    for i in range(50):
        learner.replay.append(rows[torch.tensor([i])])
    found = learner.batch(generator).reward
    assert [int((found == mark).sum()) for mark in (1, 2, 3)] == [int(64 * share) for share in shares]


def test_pooled_shares_are_of_all_rows_alike() -> None:
    class Agent:
        data, device = data_of(marked(30, 2.0)), torch.device("cpu")

    config = OnlineConfig.model_validate({"steps": 90, "batch": 4000, "shares": {"pooled": True}})
    learner = OnlineLearner(Agent(), config, None, None)  # type: ignore[arg-type]
    rows = marked(90, 1.0)
    for i in range(90):
        learner.replay.append(rows[torch.tensor([i])])
    assert (learner.batch(torch.Generator()).reward == 1).float().mean().item() == pytest.approx(0.75, abs=0.03)


def test_variants_take_the_same_actions_and_online_rows(generator: torch.Generator) -> None:
    """Whatever else is drawn between."""

    class Agent:
        data, device = data_of(marked(50, 2.0)), torch.device("cpu")

    found = []
    for shares in ({"online": 0.5, "offline": 0.5}, {"online": 0.5, "offline": 0, "generated": 0.5}):
        config = OnlineConfig.model_validate({"steps": 50, "batch": 64, "shares": shares, "generator": "fixed"})
        learner = OnlineLearner(Agent(), config, None, Fixed(), seed=5)  # type: ignore[arg-type]
        rows = transitions(50, seed=3)
        for i in range(50):
            learner.replay.append(rows[torch.tensor([i])])
        found.append([learner.batch(generator).state[:32] for _ in range(3)])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_a_recent_view_holds_the_last_rows() -> None:
    replay, rows = Replay(10, transitions(1)), transitions(6)
    for i in range(6):
        replay.append(rows[torch.tensor([i])])
    assert torch.equal(replay.recent(2).state, rows.state[-2:])
    assert torch.equal(replay.recent(99).state, rows.state)


def test_an_environment_goes_on_where_it_was() -> None:
    def walk(env: ResumableEnv, n: int) -> list[Any]:
        actions = np.random.default_rng(0).uniform(-1, 1, (60, 3)).astype(np.float32)
        return [env.step(action) for action in actions[n:]]

    def hopper() -> Any:
        return gym.make("Hopper-v5", max_episode_steps=25)

    whole = ResumableEnv(hopper, seed=3)
    expected = walk(whole, 0)
    assert sum(o.finished is not None for o in expected) >= 2
    first, again = ResumableEnv(hopper, seed=3), ResumableEnv(hopper, seed=3)
    actions = np.random.default_rng(0).uniform(-1, 1, (60, 3)).astype(np.float32)
    for action in actions[:40]:
        first.step(action)
    again.load(first.state())
    for outcome, other in zip(walk(again, 40), expected[40:], strict=True):
        assert outcome.reward == other.reward
        assert np.array_equal(outcome.observation, other.observation)
        assert (outcome.terminated, outcome.finished) == (other.terminated, other.finished)


# -- transitions as vectors --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("terminal", ["generated", "never"])
def test_vectors_come_back_as_transitions(terminal: Any) -> None:
    rows = transitions(100)
    ended = Batch(rows.state, rows.action, rows.reward, rows.next_state, (torch.arange(100) % 3 == 0).float())
    codec = TransitionCodec(ended, terminal)
    x = codec.encode(ended)
    assert x.shape == (100, codec.size) == (100, 9 + (terminal == "generated"))
    back = codec.decode(x)
    for name in ("state", "action", "reward", "next_state"):
        assert torch.allclose(getattr(back, name), getattr(ended, name), atol=1e-5)
    assert torch.equal(back.terminal, ended.terminal if terminal == "generated" else torch.zeros(100))
    assert torch.allclose(x[:, codec.state_action], codec.encode_pairs(ended.state, ended.action))


@pytest.mark.parametrize(("task", "env_id"), [("hopper-medium", "Hopper-v5"), ("walker2d-medium", "Walker2d-v5")])
def test_the_rule_of_a_fall_is_the_simulators(task: str, env_id: str) -> None:
    env = gym.make(env_id)
    env.reset(seed=0)
    states, ends = [], []
    for seed in range(12):
        env.reset(seed=seed)
        rng = np.random.default_rng(seed)
        for _ in range(150):
            observation, _, terminated, _, _ = env.step(rng.uniform(-1, 1, env.action_space.shape))
            states.append(observation)
            ends.append(terminated)
            if terminated:
                break
    assert sum(ends) + 1 >= 12
    raw = torch.as_tensor(np.array(states), dtype=torch.float32)
    mean, std = raw.mean(0), raw.std(0)
    data = OfflineData(transitions(1), mean, std, mean, mean, 0.0, 1)
    found = terminations.rule(find_task(task), data)((raw - mean) / std)
    assert found.bool().tolist() == ends


def test_a_rule_that_is_not_known_is_named() -> None:
    with pytest.raises(UserError, match="use terminal: generated"):
        terminations.known(find_task("mine/other-v0"))


def test_log_normal_times_have_edms_noise_levels(generator: torch.Generator) -> None:
    for schedule in (EDM(), VPLinear()):
        t = LogNormalTimes(schedule, -1.2, 1.2)(20_000, generator)
        levels = (schedule.sigma(t) / schedule.alpha(t)).log()
        assert levels.median().item() == pytest.approx(-1.2, abs=0.05)
        inner = levels.quantile(torch.tensor([0.25, 0.75]))
        assert (inner[1] - inner[0]).item() == pytest.approx(2 * 0.6745 * 1.2, abs=0.06)


def test_returns_to_go_stop_at_ends_and_go_on_where_episodes_were_cut() -> None:
    state = torch.arange(6.0)[:, None]
    after = torch.tensor([1.0, 2.0, 9.0, 4.0, 9.0, 6.0])[:, None]
    rows = Batch(state, state, torch.tensor([1.0, 1.0, 1.0, 2.0, 2.0, -1.0]), after, torch.tensor([0.0, 0, 1, 0, 0, 0]))
    assert returns_to_go(rows, 0.5).tolist() == pytest.approx([1.75, 1.5, 1.0, 3.0, 2.0, -2.0])


# -- ratios and guidance against a known answer ------------------------------------------------------------------------


def toy(n: int, seed: int, *, wanted: bool) -> Batch:
    """s_0 at -1 or 1, a uniform; wanted: s_0 at 1, a ~ N(0.5, 0.2^2). s' = s + a / 2, r = -s'."""
    g = torch.Generator().manual_seed(seed)
    side = torch.ones(n) if wanted else torch.where(torch.rand(n, generator=g) < 0.5, -1.0, 1.0)
    state = side[:, None] + 0.2 * torch.randn(n, 1, generator=g)
    uniform = 2 * torch.rand(n, 1, generator=g) - 1
    action = 0.5 + 0.2 * torch.randn(n, 1, generator=g) if wanted else uniform
    after = state + 0.5 * action
    return Batch(state, action, -after[:, 0], after, torch.zeros(n))


def context_of(data: OfflineData, actions: Any) -> GeneratorContext:
    def fresh(name: str, make: Any) -> Any:
        torch.manual_seed(7)
        return make()

    return GeneratorContext(data, find_task("mine/other-v0"), actions, fresh)


def policy(states: Tensor, generator: torch.Generator) -> Tensor:
    return 0.5 + 0.2 * torch.randn(len(states), 1, generator=generator)


@pytest.fixture(scope="module")
def online_rows() -> Replay:
    replay, rows = Replay(1000, toy(1, 0, wanted=True)), toy(1000, 1, wanted=True)
    for i in range(1000):
        replay.append(rows[torch.tensor([i])])
    return replay


def log_normal(x: Tensor, mean: float, std: float) -> Tensor:
    return torch.distributions.Normal(mean, std).log_prob(x)


@pytest.mark.parametrize("terms", [pytest.param({"action": 0.5}, marks=pytest.mark.slow), {"state": 1.0, "action": 1.0}])
def test_log_weights_are_the_known_ratios(terms: Any, online_rows: Replay, generator: torch.Generator) -> None:
    data = data_of(toy(5000, 0, wanted=False))
    codec = TransitionCodec(data.transitions, "never")
    encoded = codec.encode(data.transitions)
    config = RatioConfig(steps=600, width=64, lr=5e-3, batch=512, headroom=20)
    weights = LogWeights(context_of(data, policy), codec, terms, config)

    def replayed(n: int, g: torch.Generator) -> Tensor:
        return encoded[torch.randint(len(encoded), (n,), generator=g)]

    weights.learn(online_rows.rows, replayed, 1.0, None, generator)
    s, a = torch.cartesian_prod(torch.linspace(0.8, 1.2, 5), torch.linspace(0.2, 0.8, 5)).unbind(1)
    rows = Batch(s[:, None], a[:, None], -s, s[:, None], torch.zeros(25))
    ratio_s = torch.full((25,), 2.0).log()  # the other mode has none of p
    ratio_a = log_normal(a, 0.5, 0.2) - torch.tensor(0.5).log()
    exact = terms.get("state", 0) * ratio_s + terms.get("action", 0) * ratio_a
    found = weights(codec.encode(rows)).detach()
    assert (found - exact).abs().mean() < 0.3


@pytest.mark.slow
def test_weights_of_actions_alone_say_nothing_where_p_never_is(online_rows: Replay, generator: torch.Generator) -> None:
    """log p(a | s) = log p(s, a) / q(s, a) - log p(s) / q(s) is a difference of two unknown numbers at s = -1."""
    mixture = toy_mixture(None)
    config = RatioConfig(steps=600, width=64, lr=5e-3, batch=512)
    weights = LogWeights(context_of(data_of(mixture.offline), policy), mixture.codec, {"action": 1.0}, config)
    mixture.take(online_rows)
    weights.learn(online_rows.rows, mixture.draw, mixture.share_of(len(online_rows)), None, generator)
    x = mixture.draw(4000, generator)
    e = weights(x).detach().double().exp()
    never = x[:, 0] < 0
    assert (e[never].sum() / e.sum()).item() < 1.3 * never.double().mean().item()


def toy_mixture(online_share: float | None) -> ReplayMixture:
    rows = toy(5000, 0, wanted=False)
    return ReplayMixture(rows, TransitionCodec(rows, "never"), online_share)


@pytest.mark.parametrize(("online_share", "expected"), [(None, 1 / 6), (0.4, 0.4)])
def test_a_mixture_has_its_share_of_online_rows(
    online_share: float | None, expected: float, online_rows: Replay, generator: torch.Generator
) -> None:
    mixture = toy_mixture(online_share)
    assert mixture.share == 0
    mixture.take(online_rows)
    assert mixture.share == pytest.approx(expected)
    assert mixture.share_of(250) == pytest.approx(expected / 4)
    right = mixture.codec.decode(mixture.draw(20_000, generator)).state > 0
    assert right.float().mean().item() == pytest.approx(0.5 + expected / 2, abs=0.02)
    parts = [(x, torch.full((len(x),), log_q).double().exp()) for x, log_q in mixture.weighed()]
    x, q = torch.cat([x for x, _ in parts]), torch.cat([q for _, q in parts])
    assert (len(x), q.sum().item()) == (6000, pytest.approx(1))
    assert q[5000:].sum().item() == pytest.approx(expected)
    low, high = mixture.range()
    assert torch.equal(low, x.amin(0)) and torch.equal(high, x.amax(0))


@pytest.mark.slow
def test_samples_beyond_the_offline_data_are_kept_where_online_rows_are(
    online_rows: Replay, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = trained("diffusion", MODEL | {"reach": 0.0, "refresh_steps": 0})
    replay, rows = Replay(2, toy(1, 0, wanted=True)), toy(2, 1, wanted=True)
    far = Batch(rows.state + 9, rows.action, rows.reward, rows.next_state, rows.terminal)
    for i in range(2):
        replay.append(far[torch.tensor([i])])
    monkeypatch.setattr(made.model, "draw", lambda denoiser, n, g: made.model.codec.encode(far)[:1].expand(n, -1))
    with pytest.raises(UserError, match="in the range of the data"):
        made.refresh(online_rows, generator)
    assert made.refresh(replay, generator)["rejected"] == 0


def test_a_weight_asks_for_no_more_than_the_replay_holds(online_rows: Replay, generator: torch.Generator) -> None:
    data = data_of(toy(2000, 0, wanted=False))
    codec = TransitionCodec(data.transitions, "never")
    weights = LogWeights(
        context_of(data, policy), codec, {"state": 1, "action": 1}, RatioConfig(steps=300, width=32, headroom=0.5)
    )
    x = codec.encode(online_rows.rows)
    weights.learn(online_rows.rows, lambda n, g: x[:n] - 5, 0.25, None, generator)  # easily told apart
    assert weights(x).max().item() == pytest.approx(np.log(4) + 0.5, abs=1e-5)


def test_the_effective_share_is_kishs() -> None:
    assert effective_share(torch.zeros(10)).item() == pytest.approx(1)
    assert effective_share(torch.tensor([0.0] + [-1e4] * 9)).item() == pytest.approx(0.1)


MODEL = {
    "denoiser": {"width": 64, "blocks": 2, "steps": 1500, "batch": 256, "lr": 2e-3},
    "refresh_steps": 300,
    "samples": 1500,
    "reach": 0.5,
}
LEARN = {"ratio": {"steps": 500, "width": 64, "lr": 5e-3}, "energy_network": {"steps": 800, "width": 64, "layers": 3}}


def trained(name: str, settings: dict[str, Any]) -> Any:
    data = data_of(toy(5000, 0, wanted=False))
    made = make_generator(ComponentConfig.model_validate({"name": name, **settings}), context_of(data, policy))
    g = torch.Generator().manual_seed(0)
    for phase in made.parts():
        for _ in range(phase.steps):
            phase.learner.update(g)
    return made


def generated(name: str, settings: dict[str, Any], online_rows: Replay) -> tuple[Batch, dict[str, Tensor]]:
    made, g = trained(name, settings), torch.Generator().manual_seed(0)
    metrics = made.refresh(online_rows, g)
    return made.sample(3000, g), dict(metrics)


@pytest.mark.slow
def test_an_unguided_model_generates_the_replayed_transitions(online_rows: Replay) -> None:
    rows, metrics = generated("diffusion", MODEL, online_rows)
    assert (rows.state > 0).float().mean().item() == pytest.approx((2500 + 1000) / 6000, abs=0.06)
    assert metrics["rejected"] < 0.1
    assert (rows.next_state - rows.state - 0.5 * rows.action).square().mean().sqrt() < 0.15
    assert rows.action.abs().max() <= 1
    assert rows.terminal.mean() < 0.01


@pytest.mark.slow
@pytest.mark.parametrize("more", [{}, {"energy": "cep"}], ids=["its own energy", "cep"])
def test_edis_generates_those_of_the_policy(more: dict[str, str], online_rows: Replay) -> None:
    rows, _ = generated("edis", {**MODEL, **LEARN, **more}, online_rows)
    assert (rows.state > 0).float().mean() > 0.93
    assert rows.action.mean().item() == pytest.approx(0.5, abs=0.1)
    assert rows.action.std() < 0.35  # 0.54 in the replay
    assert (rows.next_state - rows.state - 0.5 * rows.action).square().mean().sqrt() < 0.15


def test_resampling_picks_those_of_the_policy(online_rows: Replay) -> None:
    rows, metrics = generated("resampled", {"ratio": {"steps": 500, "width": 64, "lr": 5e-3}}, online_rows)
    assert (rows.state > 0).float().mean() > 0.97
    assert rows.action.mean().item() == pytest.approx(0.5, abs=0.06)
    assert rows.action.std().item() == pytest.approx(0.2, abs=0.06)
    assert torch.allclose(rows.next_state, rows.state + 0.5 * rows.action, atol=1e-5)  # as they were
    assert metrics["effective_share"] < 0.5


@pytest.mark.parametrize("energy", ["dps", "cep"])
def test_without_guidance_edis_is_the_unguided_model(energy: str, online_rows: Replay) -> None:
    """omega = 0 leaves every sample where it was, to the last bit."""
    few = {**MODEL, "denoiser": {**MODEL["denoiser"], "steps": 50}, "refresh_steps": 0}  # type: ignore[dict-item]
    briefly = {"ratio": {"steps": 3, "width": 8}, "energy_network": {"steps": 3, "width": 8}}
    made = trained("edis", {**few, **briefly, "energy": energy, "omega": 0.0})
    denoiser, _ = made.guided_denoiser(online_rows, torch.Generator().manual_seed(0))
    guided, plain = (made.model.draw(d, 200, torch.Generator().manual_seed(1)) for d in (denoiser, made.model.denoiser))
    assert torch.equal(guided, plain)


def test_an_objective_trains_its_own_network(online_rows: Replay, two_heads: str) -> None:
    few = {**MODEL, "denoiser": {"width": 8, "blocks": 1, "steps": 1}, "refresh_steps": 1, "ratio": {"steps": 1, "width": 8}}
    energy = {"name": two_heads, "width": 16}
    made = trained("edis", {**few, "energy": energy, "energy_network": {"steps": 2}})
    before = {name: tensor.clone() for name, tensor in made.networks()["energy"].state_dict().items()}
    assert any(tuple(tensor.shape) == (2, 16) for tensor in before.values())  # mean and log of the standard deviation
    denoiser, metrics = made.guided_denoiser(online_rows, torch.Generator().manual_seed(0))
    after = made.networks()["energy"].state_dict()
    assert all(not torch.equal(tensor, after[name]) for name, tensor in before.items()) and "energy_loss" in metrics
    x = torch.randn(5, made.model.codec.size)
    assert denoiser(x, torch.full((5,), 0.5), None).isfinite().all()


def test_units_do_not_matter(online_rows: Replay) -> None:
    """Rewards in other units are the same transitions in those units."""
    found = []
    for scale in (1.0, 50.0):
        rows = toy(2000, 0, wanted=False)
        data = data_of(Batch(rows.state, rows.action, scale * rows.reward, rows.next_state, rows.terminal))
        made = make_generator(ComponentConfig.model_validate({"name": "diffusion", **MODEL}), context_of(data, policy))
        g = torch.Generator().manual_seed(0)
        for _ in range(30):
            made.parts()[0].learner.update(g)  # type: ignore[attr-defined]
        found.append(made.model.draw(made.model.denoiser, 100, g))  # type: ignore[attr-defined]
    assert torch.allclose(found[0], found[1], atol=1e-3)
