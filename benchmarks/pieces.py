"""Pieces of offline RL for ``egd bench speed``, each beside plain code that does the same work (``benchmarks.plain``)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import cycle
from typing import Any

import torch
from torch import Tensor

from benchmarks import plain, plain_acting
from benchmarks.lab import BETA, CONTRASTED, NU, SUPPORT, Lab
from egd.bench.speed import Piece, Setup, SpeedCase
from egd.config.base import Tree
from egd.training.batched import BatchedLearner
from egd.training.learners import EnergyLearner
from rl.agents.aepo import AEPO
from rl.deploy.export import has_onnx_runtime
from rl.deploy.module import PolicyModule
from rl.deploy.policy import Compile, Policy
from rl.envs.maze2d import make_env
from rl.evaluation.rollouts import Player, PolicyBatch, rollouts
from rl.parts.action_sampling import BehaviourSupport

PHASES = {"noise": "denoiser", "critic": "critic", "energy_aepo": "energy_aepo", "energy_cep": "energy_cep"}
"""Piece -> the training phase whose step it times."""
OMEGAS = (1.0, 2.0, 3.0)
WAYS: dict[str, Tree] = {"eager": {}, "compiled": {"compile": True}, "compiled bf16": {"compile": True, "precision": "bf16"}}
"""Ways of running training steps."""
RUNTIMES: dict[str, Compile] = {"traced": False, "torch.compile": True, "onnx": "onnx"}
"""Ways of running policies for control loops."""
STATES = (1, 10, 100, 1000)


def pieces(setup: Setup) -> list[Piece]:
    """Return all pieces. Raises UserError for shapes or settings that do not exist."""
    lab = Lab(setup)
    config = lab.config({})
    noise = f"width {config.denoiser.width}" if setup.shapes == "recipe" else "U-Net"
    shape = f"{setup.shapes}, state {setup.state}, action {setup.action}, noise model {noise}"
    if setup.settings:
        shape += f", {' '.join(setup.settings)}"
    nfe = config.sampler.steps
    steps = [
        *(_steps(lab, "noise_step", "noise", (256, 4096))),
        *(_steps(lab, "critic_step", "critic", (256,), "implicit Q-learning: twin Q, V and the target")),
        *(_steps(lab, "energy_step_aepo", "energy_aepo", (256,), "first order at the data action, Posterior 1")),
        *(_cep_step(lab, b) for b in (256, 256 * CONTRASTED)),
        Piece(
            "energy_cep_cached",
            256 * CONTRASTED,
            partial(cep_cached, lab, 256 * CONTRASTED),
            note=f"256 states with {CONTRASTED} actions each, as above, but drawn beforehand: the step alone",
        ),
        calibration(lab),
    ]
    drawn_first = f"{SUPPORT} actions a state are drawn first, unguided"
    acting = [
        *_actions(lab, "act_trained", "aepo", f"{nfe} steps"),
        *_actions(lab, "act_training_free", "guided", f"{nfe} steps; {drawn_first}"),
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
        Piece(f"seeds_{name}", 256, partial(seeds, lab, name, runs, over), runs=runs, how=how)
        for name in ("noise", "critic", "energy_aepo")
        for how, over in _ways(lab).items()
        for runs in (1, 8, 32)
    ]
    return [*(_with_shape(p, shape) for p in (*steps, *acting, *together)), *scaling(lab)]


def _with_shape(piece: Piece, shape: str) -> Piece:
    return piece if piece.shape else replace(piece, shape=shape)


# -- training ----------------------------------------------------------------------------------------------------


def _steps(lab: Lab, name: str, phase: str, batches: Sequence[int], note: str = "") -> list[Piece]:
    """Return pieces of one update, in every way and at every batch size."""
    return [
        Piece(name, b, partial(step, lab, phase, b, over), how=how, note=note)
        for b in batches
        for how, over in _ways(lab).items()
    ]


def _ways(lab: Lab) -> dict[str, Tree]:
    return {"eager": {}} if lab.setup.smoke else WAYS  # compiling takes longer than a trial may


def step(lab: Lab, name: str, batch: int, over: Tree | None = None) -> SpeedCase:
    """Prepare one update."""
    agent = _agent(lab, batch, over=over)
    return SpeedCase(_updates(lab, [agent], name), _plain_step(lab, agent, name, batch), dtype=_dtype(agent))


def _cep_step(lab: Lab, batch: int) -> Piece:
    note = f"a batch is of actions, {CONTRASTED} a state, drawn from the noise model at every step"
    return Piece("energy_step_cep", batch, partial(cep_drawing, lab, batch), note=note)


def cep_drawing(lab: Lab, batch: int) -> SpeedCase:
    """Prepare one update of CEP that draws its support actions."""
    agent, generator = _agent(lab, batch), lab.generator()
    learner = lab.learner(agent, PHASES["energy_cep"])
    assert isinstance(learner, EnergyLearner)

    def sample(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        states = agent.data.sample(n // CONTRASTED, generator).state
        return agent.behaviour.actions(states, CONTRASTED, generator).flatten(0, 1), states.repeat_interleave(CONTRASTED, 0)

    learner.sample = sample
    return SpeedCase(lambda: learner.update(generator), _plain_step(lab, agent, "energy_cep", batch), dtype=_dtype(agent))


def cep_cached(lab: Lab, batch: int) -> SpeedCase:
    """Prepare one update of CEP whose support actions were drawn before."""
    agent, generator = _agent(lab, batch), lab.generator()
    learner, states = lab.learner(agent, PHASES["energy_cep"]), batch // CONTRASTED
    drawn = torch.randn(states, CONTRASTED, _action(agent), generator=generator, device=lab.device).tanh()
    assert agent.support is not None
    agent.support.update(generator)
    e, critic = agent.config.energy_network, lab.plain_critic(agent, batch)
    network = lab.plain_energy_network(agent)
    by_hand = plain.PlainCEP(network, critic, lambda s, k: drawn, batch=batch, samples=CONTRASTED, lr=e.lr, beta=BETA)
    return SpeedCase(lambda: learner.update(generator), by_hand.step, dtype=_dtype(agent))


def seeds(lab: Lab, name: str, runs: int, over: Tree | None = None) -> SpeedCase:
    """Prepare one update of many runs."""
    agents = [_agent(lab, 256, seed, over) for seed in range(runs)]
    run, one = _updates(lab, agents, name), _updates(lab, [_agent(lab, 256, over=over)], name)
    return SpeedCase(run, _plain_step(lab, agents[0], name, 256), one, _dtype(agents[0]))


def _updates(lab: Lab, agents: Sequence[AEPO], name: str) -> Callable[[], object]:
    """Return a function that updates every agent once, as ``egd.runs.phases`` does."""
    learners = [lab.learner(agent, PHASES[name]) for agent in agents]
    generators = [lab.generator(seed) for seed in range(len(agents))]
    if len(learners) > 1 or learners[0].computing.compile:
        return BatchedLearner(learners, generators).update
    return lambda: learners[0].update(generators[0])


def _agent(lab: Lab, batch: int, seed: int = 0, over: Tree | None = None) -> AEPO:
    batches: Tree = {part: {"batch": batch} for part in ("denoiser", "critic", "energy_network")}
    return lab.agent({"seed": seed, **batches, **(over or {})})


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
        variance = moments.t, moments.clamped("posterior1"), moments.data_var
        return plain.PlainAEPO(network, noise, critic, variance, batch=batch, lr=e.lr, beta=BETA, nu=NU).step
    draw = partial(plain_acting.support, noise, action=_action(agent), steps=agent.config.sampler.steps)
    return plain.PlainCEP(network, critic, draw, batch=batch, samples=CONTRASTED, lr=e.lr, beta=BETA).step


def _action(agent: AEPO) -> int:
    return agent.data.transitions.action.shape[1]


def calibration(lab: Lab) -> Piece:
    """Return the piece that estimates the posterior's variances over t."""
    samples, grid = (64, 4) if lab.setup.smoke else (4096, 50)

    def make() -> SpeedCase:
        agent, generator = lab.agent({"calibration": {"samples": samples, "grid": grid}}), lab.generator()
        noise, replay, both = lab.plain_noise_network(agent), lab.replay(agent), (None, lab.bounds(agent))
        return SpeedCase(
            lambda: agent.calibration.update(generator),
            lambda: plain.calibrate(noise, replay, samples=samples, grid=grid, bounds=both),
        )

    return Piece("calibration", samples, make, note=f"{grid} times, all three forms, with x_0 clipped and not; once a run")


# -- acting ------------------------------------------------------------------------------------------------------


def _actions(lab: Lab, name: str, policy_name: str, note: str) -> list[Piece]:
    """Return pieces of one guided action for every state, by every runtime."""
    common: dict[str, Any] = {"unit": "states", "note": note}
    plain_ones = [Piece(name, n, partial(act, lab, policy_name, n), items=n, **common) for n in STATES]
    return plain_ones + [
        Piece(name, n, partial(act_compiled, lab, policy_name, n, runtime), items=n, how=how, **common)
        for how, runtime in _runtimes(lab).items()
        for n in (STATES[:1] if lab.setup.smoke else STATES)
    ]


def _runtimes(lab: Lab) -> dict[str, Compile]:
    wanted = {"traced": True, "torch.compile": not lab.setup.smoke, "onnx": lab.device.type == "cpu" and has_onnx_runtime()}
    return {how: runtime for how, runtime in RUNTIMES.items() if wanted[how]}


def act(lab: Lab, policy_name: str, n: int) -> SpeedCase:
    """Prepare one guided action for each of n states."""
    agent = lab.agent()
    states, scale_index = agent.data.transitions.state[:n], torch.zeros(n, dtype=torch.long, device=lab.device)
    policy = agent.policy(policy_name, [1.0], lab.generator())
    by_hand = plain_policy(lab, agent, policy_name)
    return SpeedCase(lambda: policy(states, scale_index), lambda: by_hand(states))


def act_compiled(lab: Lab, policy_name: str, n: int, runtime: Compile) -> SpeedCase:
    """Prepare one guided action for each of n states by the ``Policy`` of control loops, warmed up at this batch size."""
    agent, eager = lab.agent(), act(lab, policy_name, n)
    states, policy = agent.data.transitions.state[:n], Policy(PolicyModule(agent, policy_name, 1.0), compile=runtime)
    policy.warm_up(n)
    return replace(eager, run=lambda: policy(states), written=eager.run)


def plain_policy(lab: Lab, agent: AEPO, policy_name: str, scale: float = 1.0) -> plain_acting.Policy:
    """Return the guided policy in plain code: (B, S) -> (B, A)."""
    noise, steps, action = lab.plain_noise_network(agent), agent.config.sampler.steps, _action(agent)
    if policy_name == "aepo":
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


def support(lab: Lab, n: int) -> SpeedCase:
    """Prepare the drawing of support actions for n states."""
    agent = lab.agent()
    states, noise = agent.data.transitions.state[:n], lab.plain_noise_network(agent)
    drawn = BehaviourSupport(agent.behaviour.sampler, agent.behaviour.denoiser(clip=False), lab.generator())
    return SpeedCase(
        torch.no_grad()(lambda: drawn(states, CONTRASTED)),
        lambda: plain_acting.support(noise, states, CONTRASTED, _action(agent), steps=agent.config.sampler.steps),
    )


def evaluation(lab: Lab) -> Piece:
    """Return the piece of rollouts at three guidance scales."""
    episodes, length = (2, 3) if lab.setup.smoke else (10, 100)
    batch = episodes * len(OMEGAS)

    def make() -> SpeedCase:
        envs = cycle([make_env("umaze", max_episode_steps=length) for _ in range(batch)])  # made once: that takes seconds
        agent = lab.agent(data=lab.random_data(4, 2))
        policy = PolicyBatch([f"{omega:g}" for omega in OMEGAS], agent.policy("aepo", OMEGAS, lab.generator()))
        player = Player([policy], agent.data.standardise, episodes, episodes, 0)
        policies = [plain_policy(lab, agent, "aepo", omega) for omega in OMEGAS]
        return SpeedCase(
            lambda: rollouts(envs.__next__, [player], device=lab.device),
            lambda: [plain_acting.evaluate(envs.__next__, policy, episodes=episodes, device=lab.device) for policy in policies],
        )

    note = (
        f"{episodes} episodes of {length} steps of maze2d-umaze at each of {len(OMEGAS)} scales, environments in this process"
    )
    return Piece("evaluation", batch, make, items=batch * length, unit="env steps", shape="state 4, action 2", note=note)


# -- sweeps ------------------------------------------------------------------------------------------------------


def scaling(lab: Lab) -> list[Piece]:
    """Return pieces of the noise model's step over width, batch and dimension of the action."""
    smoke, setup = lab.setup.smoke, lab.setup
    widths: Sequence[int] = () if setup.shapes != "recipe" else (16, 32) if smoke else (64, 128, 256, 512, 1024)
    batches = (32, 64) if smoke else (64, 256, 1024, 4096, 16384)
    actions = (2, 3) if smoke else (2, 6, 24, 96)

    def case(width: int | None = None, batch: int = 256, action: int | None = None) -> SpeedCase:
        denoiser = {"batch": batch, **({} if width is None else {"width": width})}
        data = lab.data if action is None else lab.random_data(setup.state, action)
        agent = lab.agent({"denoiser": denoiser}, data)
        learner, generator = lab.learner(agent, "denoiser"), lab.generator()
        return SpeedCase(lambda: learner.update(generator), _plain_step(lab, agent, "noise", batch), dtype=_dtype(agent))

    note = "the noise model's step"
    return [
        *(Piece("scaling_width", 256, partial(case, width=w), shape=f"width {w}", note=note, extra=True) for w in widths),
        *(Piece("scaling_batch", b, partial(case, batch=b), shape=f"batch {b}", note=note, extra=True) for b in batches),
        *(Piece("scaling_action", 256, partial(case, action=a), shape=f"action {a}", note=note, extra=True) for a in actions),
    ]
