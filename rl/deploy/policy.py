"""A trained policy in a control loop: the guided solve as one graph, traced once a batch size and then only run."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import numpy as np
import torch
from torch import Tensor, fx, nn

from egd.config.base import read_yaml
from egd.config.trust import trusting
from egd.errors import UserError, nearest
from egd.runs.folder import RunFolder
from egd.runs.recipe import pick_device
from egd.runs.summaries import Summary
from egd.tracing import Folding, trace
from egd.training.precision import compiled, quick_products
from rl.agents.base import Agent
from rl.deploy.export import onnx_runtime
from rl.parts.guided_policy import GivenNoise
from rl.runs.loading import read_config, restore

SIZES = (1, 10, 100, 1000)
"""Batch sizes that a policy is traced for; smaller batches are filled up, larger ones cut into pieces of the last."""

Compile = Literal[False, True, "onnx"]
Observation = TypeVar("Observation", Tensor, "np.ndarray[Any, Any]")


class PolicyModule(nn.Module):
    """One arm of a trained agent as a function of tensors: the code that evaluates it, with its noise given from outside.

    ``arm`` is one of the agent's, the headline's unless given (``guided``, a variant, ``behaviour``; ``policy`` of an agent
    without guidance); ``omega`` its guidance scale, the recipe's unless given. ``draws`` (M)
    is how many normal draws a state takes: one for each action it samples (``candidates``), and one for each support sample.
    UserError for an arm that does not exist, a negative scale, or an arm that draws random numbers of another kind.
    """

    def __init__(self, agent: Agent, arm: str | None = None, omega: float | None = None) -> None:
        super().__init__()
        self.arm = agent.headline.partition("@")[0] if arm is None else arm
        self.omega = _scale(agent, self.arm, omega)
        self._agent = (agent,)  # in a tuple, as it is no module
        self.networks = nn.ModuleDict(agent.modules())
        self.observations, self.actions = len(agent.data.state_mean), len(agent.data.action_low)
        self.entries = agent.entries
        self.draws = self._draws()

    @property
    def agent(self) -> Agent:
        """Whose arm it is."""
        return self._agent[0]

    @torch.no_grad()
    def forward(self, observation: Tensor, noise: Tensor) -> Tensor:
        """Observations (N, S) as the environment gives them, standard normal noise (N, M, E) -> actions (N, A), within the
        range of the data's. E is the agent's ``entries``: A, but for plans."""
        return self._act(observation, GivenNoise(noise)).clamp(self.agent.data.action_low, self.agent.data.action_high)

    def _act(self, observation: Tensor, noise: GivenNoise) -> Tensor:
        scales = [] if self.agent.policies()[self.arm] is None else [self.omega]
        act = self.agent.policy(self.arm, scales, noise)
        which = torch.zeros(len(observation), dtype=torch.long, device=observation.device)
        return act(self.agent.data.standardise(observation), which)

    @torch.no_grad()
    def _draws(self) -> int:
        device = self.agent.device
        endless = GivenNoise(torch.zeros(1, 1, self.entries, device=device).expand(1, 1_000_000_000, self.entries))
        with _naming(self.arm), Folding():
            self._act(torch.zeros(1, self.observations, device=device), endless)
        return endless.used

    def inputs(self, batch: int) -> dict[str, Tensor]:
        """Zeros in the shapes of the inputs, by name, for a batch of that size."""
        shapes = {"observation": (batch, self.observations), "noise": (batch, self.draws, self.entries)}
        return {name: torch.zeros(shape, device=self.agent.device) for name, shape in shapes.items()}

    def graph(self, batch: int, decompositions: Mapping[Any, Any] | None = None) -> fx.GraphModule:
        """``forward`` for a fixed batch size as one flat graph, with a copy of the weights. UserError for an arm that decides
        by its values what to compute, as ``second_order`` does.
        """
        with _naming(self.arm):
            return trace(self, self.inputs(batch), decompositions)


@contextmanager
def _naming(arm: str) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        remedy = "take another arm; the agent's policy() runs every one as it is"
        raise UserError(f"arm '{arm}' cannot be one graph: {error}; {remedy}", key="--arm") from error


def _scale(agent: Agent, arm: str, omega: float | None) -> float:
    arms = agent.policies()
    if arm not in arms:
        raise UserError(f"the run has no arm '{arm}'; {nearest(arm, arms)}", key="--arm")
    own = arms[arm]
    if own is None:
        if omega:
            raise UserError(f"'{arm}' has no guidance scale; leave it out, or choose another arm", key="--omega")
        return 0.0
    if omega is not None and not 0 <= omega < math.inf:
        raise UserError(f"{omega:g} is no guidance scale: it is finite and not negative", key="--omega")
    return own if omega is None else omega


def load_module(
    run: Path | str,
    arm: str | None = None,
    omega: float | None = None,
    device: str = "cpu",
    *,
    trust_code: bool = False,
) -> PolicyModule:
    """An arm of a complete run, from its folder OUT/<task>/seed-<n>; its data set must be at hand. UserError where the folder
    is none or the run is not complete, where its settings name code of a stranger and not ``trust_code``, and as
    ``PolicyModule``.
    """
    folder = RunFolder(Path(run))
    if not folder.config.exists():
        raise UserError(f"{run} is not a run folder: it has no config.yaml; give OUT/<task>/seed-<n>")
    tree = read_yaml(folder.config)
    if tree.get("experiment") != "offline_rl":
        raise UserError(f"{run} is a run of '{tree.get('experiment')}'; only those of offline_rl have policies")
    if folder.read_summary(Summary) is None:
        raise UserError(f"{run} is not complete; finish it with egd run --resume")
    chosen = torch.device(pick_device(device))
    with trusting(trust_code, folder.path):
        config = read_config(folder).model_copy(update={"device": chosen.type})
        agent, _ = restore(config, folder, chosen)
        return PolicyModule(agent, arm, omega)


class Policy:
    """policy(observation) -> action, for a control loop: the traced ``PolicyModule``, with a generator of its own.

    The first call of a batch size (``SIZES``) traces the solve, which takes seconds; ``warm_up`` does so beforehand. The graph
    is run operation by operation, or with ``compile`` by torch.compile, which takes up to a minute, less from its cache on
    disk; where that fails (on a CPU it needs a C++ compiler) there is a warning, and the graph is run as it is. ``compile`` =
    "onnx" is ONNX Runtime, the fastest on a CPU; UserError for it on a GPU, and where it is not installed.
    """

    def __init__(self, module: PolicyModule, *, compile: Compile = False, seed: int = 0) -> None:
        self.module, self.device, self.compile = module, module.agent.device, compile
        if compile not in get_args(Compile):
            raise UserError(f"{compile!r} is no way to compile; use False, True or 'onnx'", key="compile")
        if compile == "onnx" and self.device.type != "cpu":
            raise UserError("ONNX Runtime is used on a CPU only; use True on a GPU", key="compile")
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self._ready: dict[int, Callable[..., Tensor]] = {}

    @classmethod
    def load(
        cls,
        run: Path | str,
        arm: str | None = None,
        omega: float | None = None,
        device: str = "cpu",
        compile: Compile = False,
        *,
        seed: int = 0,
        batch: int = 1,
        trust_code: bool = False,
    ) -> Policy:
        """An arm of a complete run, warmed up for batches of one size. UserError as ``load_module``."""
        module = load_module(run, arm, omega, device, trust_code=trust_code)
        policy = cls(module, compile=compile, seed=seed)
        policy.warm_up(batch)
        return policy

    def warm_up(self, batch: int = 1) -> None:
        """Make ready for batches of that size."""
        for size in {_padded(len(piece)) for piece in torch.split(torch.empty(batch, 0), SIZES[-1])}:
            if size not in self._ready:
                self._ready[size] = self._prepare(size)

    def noise(self, batch: int) -> Tensor:
        """Fresh noise for so many states, (N, M, E)."""
        shape = (batch, self.module.draws, self.module.entries)
        return torch.randn(shape, generator=self.generator, device=self.device)

    @torch.no_grad()
    def __call__(self, observation: Observation, noise: Tensor | None = None) -> Observation:
        """(S,) or (N, S) -> (A,) or (N, A), a float32 array for an array and a tensor for a tensor.

        ``noise`` (N, M, E), or (M, E), in place of fresh noise makes the action repeatable. ValueError for other shapes.
        """
        given = torch.as_tensor(observation, dtype=torch.float32, device=self.device)
        rows = given if given.ndim == 2 else given[None]
        if rows.ndim != 2 or rows.shape[1] != self.module.observations:
            raise ValueError(
                f"observations are ({self.module.observations},) or (N, {self.module.observations}), got {tuple(given.shape)}"
            )
        fresh = self.noise(len(rows)) if noise is None else noise.reshape(len(rows), self.module.draws, self.module.entries)
        self.warm_up(len(rows))
        pieces = zip(torch.split(rows, SIZES[-1]), torch.split(fresh, SIZES[-1]), strict=True)
        actions = torch.cat([self._act(*piece) for piece in pieces]).reshape(*given.shape[:-1], -1)
        return actions.to(observation.device) if isinstance(observation, Tensor) else actions.cpu().numpy()

    def _act(self, rows: Tensor, noise: Tensor) -> Tensor:
        n, size = len(rows), _padded(len(rows))
        if n < size:
            rows, noise = (torch.cat([v, v.new_zeros(size - n, *v.shape[1:])]) for v in (rows, noise))
        with quick_products(self.device, size * self.module.draws):
            return self._ready[size](rows, noise)[:n].clone()  # compiled for a GPU, it overwrites its result at the next call

    def _prepare(self, size: int) -> Callable[..., Tensor]:
        inputs = list(self.module.inputs(size).values())
        if self.compile == "onnx":
            return _warm(onnx_runtime(self.module, size), inputs)
        graph = self.module.graph(size)
        with quick_products(self.device, size * self.module.draws):
            return _warm(compiled(graph, tuple(inputs), self.device.type) if self.compile else graph, inputs)


@torch.no_grad()
def _warm(f: Callable[..., Tensor], inputs: Sequence[Tensor]) -> Callable[..., Tensor]:
    for _ in range(3):  # a CUDA graph is recorded at the second call, and first replayed at the third
        f(*inputs)
    return f


def _padded(n: int) -> int:
    """The smallest size that holds n."""
    return next(size for size in SIZES if n <= size)
