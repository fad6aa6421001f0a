"""What ``egd bench speed`` measures of offline RL, each piece beside plain code that does the same (``rl.bench.plain``)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import cycle

import torch
from torch import Tensor

from egd.batched import BatchedLearner
from egd.bench.speed import Case, Piece, Setup
from rl.agents.aepo import AEPO
from rl.bench import plain, plain_acting
from rl.bench.lab import BETA, CONTRASTED, NU, SUPPORT, Lab
from rl.evaluation import Arm, Player, rollouts
from rl.maze2d import make_env
from rl.policies import BehaviourSupport

PHASES = {"noise": "denoiser", "critic": "critic", "energy_aepo": "energy_aepo", "energy_cep": "energy_cep"}
"""Piece -> the phase of training it is a step of."""
OMEGAS = (1.0, 2.0, 3.0)


def pieces(setup: Setup) -> list[Piece]:
    """All of them. UserError for shapes or settings that do not exist."""
    lab = Lab(setup)
    config = lab.config({})
    noise = f"width {config.denoiser.width}" if setup.shapes == "recipe" else "U-Net"
    shape = f"{setup.shapes}, state {setup.state}, action {setup.action}, noise model {noise}"
    if setup.settings:
        shape += f", {' '.join(setup.settings)}"
    nfe = config.sampler.steps
    steps = [
        *(Piece("noise_step", b, partial(step, lab, "noise", b)) for b in (256, 4096)),
        Piece("critic_step", 256, partial(step, lab, "critic", 256), note="implicit Q-learning: twin Q, V and the target"),
        Piece(
            "energy_step_aepo", 256, partial(step, lab, "energy_aepo", 256), note="first order at the data action, Posterior 1"
        ),
        *(
            Piece(
                "energy_step_cep",
                b,
                partial(step, lab, "energy_cep", b),
                note=f"a batch is of actions, {CONTRASTED} a state, drawn from the noise model in {nfe} steps at every step",
            )
            for b in (256, 256 * CONTRASTED)
        ),
        calibration(lab),
    ]
    acting = [
        *(Piece("act_trained", n, partial(act, lab, "aepo", n), items=n, unit="states") for n in (1, 10, 100, 1000)),
        *(
            Piece(
                "act_training_free",
                n,
                partial(act, lab, "guided", n),
                items=n,
                unit="states",
                note=f"{SUPPORT} actions a state are drawn first, unguided",
            )
            for n in (1, 10, 100, 1000)
        ),
        Piece(
            "support_actions",
            256,
            partial(support, lab, 256),
            items=256,
            unit="states",
            note=f"{CONTRASTED} actions a state in {nfe} steps",
        ),
        evaluation(lab),
    ]
    together = [
        Piece(f"seeds_{name}", 256, partial(seeds, lab, name, runs), runs=runs)
        for name in ("noise", "critic", "energy_aepo")
        for runs in (1, 8, 32)
    ]
    return [*(_with_shape(p, shape) for p in (*steps, *acting, *together)), *scaling(lab)]


def _with_shape(piece: Piece, shape: str) -> Piece:
    return piece if piece.shape else replace(piece, shape=shape)


# -- training ----------------------------------------------------------------------------------------------------


def step(lab: Lab, name: str, batch: int) -> Case:
    """One update."""
    agent = _agent(lab, batch)
    learner, generator = lab.learner(agent, PHASES[name]), lab.generator()
    return Case(lambda: learner.update(generator), _plain_step(lab, agent, name, batch), dtype=_dtype(agent))


def seeds(lab: Lab, name: str, runs: int) -> Case:
    """One update of many runs."""
    agents = [_agent(lab, 256, seed) for seed in range(runs)]
    learners = [lab.learner(agent, PHASES[name]) for agent in agents]
    generators = [lab.generator(seed) for seed in range(runs)]
    single, generator = lab.learner(_agent(lab, 256), PHASES[name]), lab.generator()
    eager, one = _plain_step(lab, agents[0], name, 256), lambda: single.update(generator)
    if runs == 1:
        return Case(lambda: learners[0].update(generators[0]), eager, one, _dtype(agents[0]))
    return Case(BatchedLearner(learners, generators).update, eager, one, _dtype(agents[0]))


def _agent(lab: Lab, batch: int, seed: int = 0) -> AEPO:
    return lab.agent({"seed": seed, **{part: {"batch": batch} for part in ("denoiser", "critic", "energy_network")}})


def _dtype(agent: AEPO) -> torch.dtype:
    return torch.bfloat16 if agent.config.precision == "bf16" else torch.float32


def _plain_step(lab: Lab, agent: AEPO, name: str, batch: int) -> plain.Step:
    d, e = agent.config.denoiser, agent.config.energy_network
    if name == "critic":
        return lab.plain_critic(agent, batch).step
    noise = lab.plain_noise_network(agent)
    if name == "noise":
        return plain.PlainNoise(noise, lab.replay(agent), batch=batch, lr=d.lr, ema=d.ema).step
    network, critic = lab.plain_energy_network(agent), lab.plain_critic(agent, batch)
    if name == "energy_aepo":
        moments = agent.calibration.moments[False]
        variance = moments.t, moments.clamped("posterior1")
        return plain.PlainAEPO(network, noise, critic, variance, batch=batch, lr=e.lr, beta=BETA, nu=NU).step
    draw = partial(plain_acting.support, noise, action=_action(agent), steps=agent.config.sampler.steps)
    return plain.PlainCEP(network, critic, draw, batch=batch, samples=CONTRASTED, lr=e.lr, beta=BETA).step


def _action(agent: AEPO) -> int:
    return agent.data.transitions.action.shape[1]


def calibration(lab: Lab) -> Piece:
    """The posterior's variances over t."""
    samples, grid = (64, 4) if lab.setup.smoke else (4096, 50)

    def make() -> Case:
        agent, generator = lab.agent({"calibration": {"samples": samples, "grid": grid}}), lab.generator()
        noise, replay, both = lab.plain_noise_network(agent), lab.replay(agent), (None, lab.bounds(agent))
        return Case(
            lambda: agent.calibration.update(generator),
            lambda: plain.calibrate(noise, replay, samples=samples, grid=grid, bounds=both),
        )

    return Piece("calibration", samples, make, note=f"{grid} times, all three forms, with x_0 clipped and not; once a run")


# -- acting ------------------------------------------------------------------------------------------------------


def act(lab: Lab, arm: str, n: int) -> Case:
    """One guided action for each of n states."""
    agent = lab.agent()
    states, which = agent.data.transitions.state[:n], torch.zeros(n, dtype=torch.long, device=lab.device)
    policy = agent.policy(arm, [1.0], lab.generator())
    by_hand = plain_policy(lab, agent, arm)
    return Case(lambda: policy(states, which), lambda: by_hand(states))


def plain_policy(lab: Lab, agent: AEPO, arm: str, scale: float = 1.0) -> plain_acting.Policy:
    """The same with plain code: (B, S) -> (B, A)."""
    noise, steps, action = lab.plain_noise_network(agent), agent.config.sampler.steps, _action(agent)
    if arm == "aepo":
        network = lab.plain_energy_network(agent)

        def trained(state: Tensor) -> Tensor:
            energy = plain_acting.trained_energy(network, state)
            return plain_acting.sample(noise, state, action, steps=steps, energy=energy, scale=scale)

        return trained
    critic, bounds = lab.plain_critic(agent), lab.bounds(agent)

    def training_free(state: Tensor) -> Tensor:
        energy = plain_acting.support_energy(noise, critic, state, SUPPORT, action, beta=BETA, steps=steps, bounds=bounds)
        return plain_acting.sample(noise, state, action, steps=steps, energy=energy, scale=scale, bounds=bounds)

    return training_free


def support(lab: Lab, n: int) -> Case:
    """Support actions for n states."""
    agent = lab.agent()
    states, noise = agent.data.transitions.state[:n], lab.plain_noise_network(agent)
    drawn = BehaviourSupport(agent.sampler, agent.denoiser(clip=False), lab.generator())
    return Case(
        torch.no_grad()(lambda: drawn(states, CONTRASTED)),
        lambda: plain_acting.support(noise, states, CONTRASTED, _action(agent), steps=agent.config.sampler.steps),
    )


def evaluation(lab: Lab) -> Piece:
    """Rollouts at three guidance scales."""
    episodes, length = (2, 3) if lab.setup.smoke else (10, 100)
    batch = episodes * len(OMEGAS)

    def make() -> Case:
        envs = cycle([make_env("umaze", max_episode_steps=length) for _ in range(batch)])  # made once: that takes seconds
        agent = lab.agent(data=lab.random_data(4, 2))
        arm = Arm([f"{omega:g}" for omega in OMEGAS], agent.policy("aepo", OMEGAS, lab.generator()))
        player = Player([arm], agent.data.standardise, episodes, episodes, 0)
        policies = [plain_policy(lab, agent, "aepo", omega) for omega in OMEGAS]
        return Case(
            lambda: rollouts(envs.__next__, [player], device=lab.device),
            lambda: [plain_acting.evaluate(envs.__next__, policy, episodes=episodes, device=lab.device) for policy in policies],
        )

    note = (
        f"{episodes} episodes of {length} steps of maze2d-umaze at each of {len(OMEGAS)} scales, environments in this process"
    )
    return Piece("evaluation", batch, make, items=batch * length, unit="env steps", shape="state 4, action 2", note=note)


# -- sweeps ------------------------------------------------------------------------------------------------------


def scaling(lab: Lab) -> list[Piece]:
    """The noise model's step over width, batch and dimension of the action."""
    smoke, setup = lab.setup.smoke, lab.setup
    widths: Sequence[int] = () if setup.shapes != "recipe" else (16, 32) if smoke else (64, 128, 256, 512, 1024)
    batches = (32, 64) if smoke else (64, 256, 1024, 4096, 16384)
    actions = (2, 3) if smoke else (2, 6, 24, 96)

    def case(width: int | None = None, batch: int = 256, action: int | None = None) -> Case:
        denoiser = {"batch": batch, **({} if width is None else {"width": width})}
        data = lab.data if action is None else lab.random_data(setup.state, action)
        agent = lab.agent({"denoiser": denoiser}, data)
        learner, generator = lab.learner(agent, "denoiser"), lab.generator()
        return Case(lambda: learner.update(generator), _plain_step(lab, agent, "noise", batch), dtype=_dtype(agent))

    note = "the noise model's step"
    return [
        *(Piece("scaling_width", 256, partial(case, width=w), shape=f"width {w}", note=note, extra=True) for w in widths),
        *(Piece("scaling_batch", b, partial(case, batch=b), shape=f"batch {b}", note=note, extra=True) for b in batches),
        *(Piece("scaling_action", 256, partial(case, action=a), shape=f"action {a}", note=note, extra=True) for a in actions),
    ]
