"""Rollouts: fixed quotas, common starts, exact returns, whoever steps the environments and whoever else plays."""

from __future__ import annotations

import io
import multiprocessing
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from countdown import Countdown, Dying, Raising, unmakeable
from rich.console import Console

from egd.errors import UserError
from egd.runs.progress import Reporter
from egd.samplers import euler
from egd.samplers.watching import SamplingWarning, note_clips, watching
from egd.schedules import VPLinear
from rl.agents.aepo import AEPO
from rl.config import GuidedConfig
from rl.data.episodes import Episodes, to_offline_data
from rl.evaluation.evaluator import Evaluator, evaluate_together, watched
from rl.evaluation.results import rows, statistics
from rl.evaluation.rollouts import Player, PolicyBatch, Rollouts, SoFar, quota, rollouts
from rl.tasks import TASKS, find_task


def constant(value: float) -> Any:
    return lambda states, scale_index: torch.full((len(states), 1), value)


def noisy(seed: int) -> Any:
    """Actions that depend on all that was drawn before."""
    generator = torch.Generator().manual_seed(seed)
    return lambda states, scale_index: torch.randn((len(states), 1), generator=generator) / 4 + scale_index[:, None] / 8


def play(
    policies: list[PolicyBatch], *, episodes: int, envs: int, seed: int, env: Any = Countdown, **settings: Any
) -> Rollouts:
    (result,) = rollouts(env, [Player(policies, lambda x: x, episodes, envs, seed)], **settings)
    return result


def same(one: Rollouts, other: Rollouts) -> None:
    assert one.env_steps == other.env_steps
    assert list(one.returns) == list(other.returns) == list(one.paths) == list(other.paths)
    for name, returns in one.returns.items():
        np.testing.assert_array_equal(returns, other.returns[name])
        for path, again in zip(one.paths[name], other.paths[name], strict=True):
            np.testing.assert_array_equal(path, again)


def test_every_environment_plays_its_quota_and_returns_are_exact() -> None:
    policies = [PolicyBatch(["ones"], constant(1.0)), PolicyBatch(["halves"], constant(0.5))]
    result = play(policies, episodes=12, envs=4, seed=3)
    assert {name: len(r) for name, r in result.returns.items()} == {"ones": 12, "halves": 12}
    lengths = []
    for i in range(4):  # the same environments by hand: seeded once, three episodes each
        env = Countdown()
        env.reset(seed=3 + i)
        lengths.append(env.length)
        for _ in range(2):
            env.reset()
            lengths.append(env.length)
    np.testing.assert_allclose(result.returns["ones"], lengths)
    np.testing.assert_allclose(result.returns["halves"], 0.5 * np.array(lengths))
    assert result.env_steps == 2 * sum(lengths)


def test_scales_in_one_batch_act_by_their_own_index() -> None:
    def act(states: torch.Tensor, scale_index: torch.Tensor) -> torch.Tensor:
        return (scale_index.float() / 4)[:, None]

    result = play([PolicyBatch(["a", "b", "c"], act)], episodes=4, envs=4, seed=0)
    np.testing.assert_allclose(result.returns["b"] * 2, result.returns["c"])
    assert (result.returns["a"] == 0).all()


def test_what_is_seen_of_a_policys_sampling_is_its_own() -> None:
    def act(states: torch.Tensor, scale_index: torch.Tensor) -> torch.Tensor:
        note_clips(1, 4)
        return torch.zeros(len(states), 1)

    policies = [PolicyBatch(["a@1", "a@2"], act), PolicyBatch(["b"], constant(1.0))]
    with watching() as around:
        result = play(policies, episodes=4, envs=2, seed=0)
    assert result.sampling == {"a@1": {"clipped": 0.25}, "a@2": {"clipped": 0.25}}
    assert around.metrics() == {"clipped": 0.25} and around.clipped > 1


def test_a_warning_of_sampling_names_the_policies() -> None:
    def act(states: torch.Tensor, scale_index: torch.Tensor) -> torch.Tensor:
        nowhere = lambda x, t, c=None: x * torch.inf  # noqa: E731
        euler(nowhere, VPLinear(), torch.ones(len(states), 1), torch.tensor([0.9, 0.5]))
        return torch.zeros(len(states), 1)

    with pytest.warns(SamplingWarning, match=r"^guided@1, guided@2: samples have left .* or are not finite"):
        play([PolicyBatch(["guided@1", "guided@2"], act)], episodes=2, envs=2, seed=0)


def test_actions_are_kept_within_the_action_space() -> None:
    result = play([PolicyBatch(["big"], constant(7.0))], episodes=3, envs=3, seed=0, paths=2)
    assert all(r == len(path) for r, path in zip(result.returns["big"], result.paths["big"], strict=False))


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_no_result(workers: int) -> None:
    def with_workers(n: int) -> tuple[Rollouts, list[Any]]:
        policies, seen = [PolicyBatch(["one"], noisy(0)), PolicyBatch(["two", "three"], noisy(1))], list[SoFar]()
        return play(policies, episodes=15, envs=5, seed=3, workers=n, watch=seen.append, paths=3), seen

    (plain, plain_seen), (parallel, seen) = with_workers(0), with_workers(workers)
    same(plain, parallel)
    assert plain_seen == seen and (seen[-1].ended, seen[-1].left, seen[-1].under_way) == (45, 0, 0)
    assert seen[-1].steps == plain.env_steps
    assert len({len(path) for path in plain.paths["one"]}) == 3  # episodes of unequal lengths


def test_more_workers_than_environments() -> None:
    policies = [PolicyBatch(["ones"], constant(1.0))]
    same(play(policies, episodes=1, envs=1, seed=0, workers=3), play(policies, episodes=1, envs=1, seed=0))


def test_a_policy_does_not_notice_the_others() -> None:
    alone = play([PolicyBatch(["one"], noisy(0))], episodes=6, envs=3, seed=3)
    beside = play([PolicyBatch(["long", "longer"], constant(1.0)), PolicyBatch(["one"], noisy(0))], episodes=6, envs=3, seed=3)
    np.testing.assert_array_equal(alone.returns["one"], beside.returns["one"])


@pytest.mark.parametrize("workers", [0, 1])
def test_what_an_environment_raises_is_reported_and_no_process_stays(workers: int) -> None:
    with pytest.raises(ArithmeticError, match="the simulation diverged"):
        play([PolicyBatch(["any"], constant(1.0))], episodes=2, envs=2, seed=0, env=Raising, workers=workers)
    assert not multiprocessing.active_children()
    with pytest.raises(UserError, match="no such simulator"):
        play([PolicyBatch(["any"], constant(1.0))], episodes=2, envs=2, seed=0, env=unmakeable, workers=workers)
    assert not multiprocessing.active_children()


def test_the_death_of_a_worker_is_reported_and_no_process_stays() -> None:
    with pytest.raises(UserError, match="a worker process that steps environments died") as error:
        play([PolicyBatch(["any"], constant(1.0))], episodes=2, envs=2, seed=0, env=Dying, workers=2)
    assert error.value.key == "evaluation.workers"
    assert not multiprocessing.active_children()


def test_workers_do_not_outlive_a_parent_that_is_killed() -> None:
    script = """
import os, signal
from countdown import Countdown
from rl.envs.vector import vectors
with vectors(Countdown, [2], 1) as envs:
    envs.reset(0, [0, 1])
    print(len(envs.receive(0).observation), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    here = Path(__file__).parent
    ran = subprocess.run(  # returns when nobody holds its output any more
        [sys.executable, "-c", f"import sys; sys.path[:0] = {[str(here), str(here.parent.parent)]}\n{script}"],
        stdout=subprocess.PIPE,
        timeout=30,
        check=False,
    )
    assert ran.stdout == b"2\n"


def maze_agent(seed: int, workers: int = 0) -> AEPO:
    """Untrained, for maze2d: states of four entries, actions of two."""
    rng = np.random.default_rng(0)
    episode = rng.normal(size=(41, 4)), rng.uniform(-1, 1, size=(40, 2)), rng.normal(size=40), np.zeros(40, dtype=bool)
    data = to_offline_data(Episodes(*([part if part.dtype == bool else part.astype(np.float32)] for part in episode)), 0.0)
    small = {"width": 16, "steps": 0}
    config = {
        "experiment": "offline_rl",
        "task": "maze2d-umaze-dense",
        "seed": seed,
        "denoiser": small | {"blocks": 2},
        "critic": small,
        "guidance": {"energy": {"name": "support_samples", "samples": 2}},
        "calibration": {"samples": 64, "grid": 4},
        "sampler": {"steps": 3},
        "evaluation": {"envs": 2, "workers": workers},
    }
    made = AEPO(GuidedConfig.model_validate(config), data, torch.device("cpu"))
    made.calibration.update(torch.Generator().manual_seed(0))
    return made


@pytest.mark.parametrize("workers", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_agents_together_score_what_they_score_apart(workers: int) -> None:
    task = replace(find_task("maze2d-umaze-dense"), max_steps=15)
    omegas = [{"behaviour": [], "guided": [1.0]}, {"behaviour": [], "guided": [0.5, 2.0]}]
    agents = [maze_agent(seed, workers) for seed in (0, 1)]
    together = evaluate_together(agents, task, omegas, episodes=4, seeds=[0, 1], paths=1)
    apart = [
        Evaluator(maze_agent(seed), task).run(scales, episodes=4, seed=seed, paths=1)
        for seed, scales in zip((0, 1), omegas, strict=True)
    ]
    for one, other in zip(together, apart, strict=True):
        same(one, other)
    assert list(together[1].returns) == ["behaviour", "guided@0.5", "guided@2"]
    assert together[0].returns["behaviour"].tolist() != together[1].returns["behaviour"].tolist()


def test_the_bar_counts_steps_and_shows_scores_as_the_table_does() -> None:
    task = replace(find_task("maze2d-umaze-dense"), max_steps=15)  # all episodes end at once
    agent, text = maze_agent(0), io.StringIO()
    with watched(Reporter(Console(file=text, width=120)), "evaluation", [agent], task) as watch:
        seen: list[SoFar] = []

        def both(so_far: SoFar) -> None:
            seen.append(so_far)
            watch(so_far)

        scales = {"behaviour": [], "guided": [1.0]}
        result = Evaluator(agent, task).run(scales, episodes=2, seed=0, watch=both)
    counted = [s.steps + s.left * 15 - s.under_way for s in seen]
    assert counted == [60] * len(seen) and [s.steps for s in seen][:3] == [0, 4, 8]
    score = {name: statistics(task, returns)["mean"] for name, returns in result.returns.items()}
    shown = " ".join(text.getvalue().split())
    assert "60/60" in shown
    assert f"guided@1 {score['guided@1']:.1f}, behaviour {score['behaviour']:.1f}, 4 of 4 episodes" in shown


@pytest.mark.parametrize(
    ("episodes", "envs", "want"), [(30, 30, (30, 1)), (30, 20, (15, 2)), (7, 5, (1, 7)), (20, 64, (20, 1))]
)
def test_quota_multiplies_to_the_episodes(episodes: int, envs: int, want: tuple[int, int]) -> None:
    assert quota(episodes, envs) == want


def test_reference_scores_are_d4rls() -> None:
    assert find_task("hopper-medium-v2").score(3234.3) == pytest.approx(100)
    assert find_task("D4RL/pen/cloned-v2").score(96.262799) == pytest.approx(0)
    assert find_task("mujoco/hopper/mixed-v0").score(-20.272305) == pytest.approx(0)
    assert find_task("egd/maze2d/umaze-v3").score(42.0) == pytest.approx(42)
    assert len([t for t in TASKS.values() if t.family == "adroit"]) == 12
    assert find_task("D4RL/door/human-v2") is TASKS["door-human"]


@pytest.mark.parametrize(("scores", "shown"), [([3.0], "3.0"), ([1.0, 3.0], "2.0 ± 1.0")])
def test_one_episode_has_no_standard_error(scores: list[float], shown: str) -> None:
    own = {
        "mean": float(np.mean(scores)),
        "std": float(np.std(scores, ddof=1)) if len(scores) > 1 else 0.0,
        "episodes": len(scores),
    }
    (row,) = rows({"task": "t", "method": "m", "seed": 0, "policies": {"policy": own}})
    assert row["score ± s.e."] == shown
