"""Trained policy in a control loop: the guided solve as one graph, traced once per batch size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import numpy as np
import torch
from torch import Tensor

from egd.errors import UserError
from egd.training.precision import compiled, quick_products
from rl.deploy.export import onnx_runtime
from rl.deploy.module import PolicyModule, load_module

SIZES = (1, 10, 100, 1000)
"""Batch sizes that a policy is traced for; smaller batches are padded, larger ones split into pieces of the last size."""

Compile = Literal[False, True, "onnx"]
Observation = TypeVar("Observation", Tensor, "np.ndarray[Any, Any]")


class Policy:
    """Policy for a control loop, policy(observation) -> action: the traced ``PolicyModule``, with a random generator of its
    own.

    The first call of a batch size (``SIZES``) traces the solve, which takes seconds; ``warm_up`` does so beforehand. The graph
    is run operation by operation, or with ``compile`` by torch.compile, which takes up to a minute, less from its cache on
    disk. Where compilation fails (on a CPU it needs a C++ compiler), a warning is shown and the graph is run as it is.
    ``compile`` = "onnx" selects ONNX Runtime, the fastest on a CPU; UserError for it on a GPU, and where it is not installed.
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
        policy: str | None = None,
        omega: float | None = None,
        device: str = "cpu",
        compile: Compile = False,
        *,
        seed: int = 0,
        batch: int = 1,
        trust_code: bool = False,
    ) -> Policy:
        """Load a policy of a complete run, warmed up for batches of one size. Raises UserError as ``load_module`` does."""
        module = load_module(run, policy, omega, device, trust_code=trust_code)
        loaded = cls(module, compile=compile, seed=seed)
        loaded.warm_up(batch)
        return loaded

    def warm_up(self, batch: int = 1) -> None:
        """Prepare the graphs for batches of that size."""
        for size in {_padded(len(piece)) for piece in torch.split(torch.empty(batch, 0), SIZES[-1])}:
            if size not in self._ready:
                self._ready[size] = self._prepare(size)

    def noise(self, batch: int) -> Tensor:
        """Draw noise for that many states, (N, M, E)."""
        shape = (batch, self.module.draws, self.module.entries)
        return torch.randn(shape, generator=self.generator, device=self.device)

    @torch.no_grad()
    def __call__(self, observation: Observation, noise: Tensor | None = None) -> Observation:
        """Compute actions, (S,) or (N, S) -> (A,) or (N, A), as a float32 array for an array and a tensor for a tensor.

        ``noise`` (N, M, E), or (M, E), replaces fresh noise and makes the action repeatable. Raises ValueError for other
        shapes.
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
            return self._ready[size](rows, noise)[:n].clone()  # compiled for a GPU, the graph overwrites its results

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
    """Return the smallest traced size that holds n."""
    return next(size for size in SIZES if n <= size)
