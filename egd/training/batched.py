"""Batches of runs: learners that differ only in their tensors take their steps together, as one program."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torch.utils._pytree import tree_map

from egd.training.learners import Fit, Metrics, StepLearner

_active: ContextVar[bool] = ContextVar("_active", default=False)


def inside() -> bool:
    """Tell whether this is a call for many runs at once: nothing made of their tensors may be kept."""
    return _active.get()


@contextmanager
def _batched_call() -> Iterator[None]:
    """Mark the calls in a with-block as calls for many runs at once."""
    token = _active.set(True)
    try:
        yield
    finally:
        _active.reset(token)


class Stack:
    """Stacked tensors of S modules of one shape: name -> (S, ...)."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self.modules, self.first = modules, modules[0]
        all_of_them = [tensors_of(module) for module in modules]
        self.tensors = {name: torch.stack([own[name] for own in all_of_them]).detach() for name in all_of_them[0]}

    def call(self, f: Callable[..., Any], *arguments: Any, tensors: dict[str, Tensor] | None = None) -> Any:
        """Call f(*arguments) once for every module, with that module's tensors in the first module, and stack what f returns.

        Every tensor of the arguments is (S, ...); everything else is shared. Random numbers within f are refused, because they
        would not be those of separate runs.
        """
        runner = Runner(self.first, f)
        axes = tree_map(lambda leaf: 0 if isinstance(leaf, Tensor) else None, arguments)

        def one(own: dict[str, Tensor], *arguments: Any) -> Any:
            return functional_call(runner, {f"module.{name}": t for name, t in own.items()}, arguments)

        with _batched_call():
            return vmap(one, in_dims=(0, *axes), randomness="error")(tensors or self.tensors, *arguments)

    @torch.no_grad()
    def unstack(self) -> None:
        """Copy the stacked tensors back into their modules."""
        for i, module in enumerate(self.modules):
            for name, tensor in tensors_of(module).items():
                tensor.copy_(self.tensors[name][i])


class Runner(nn.Module):
    """Module of a function, beside the module whose tensors it uses."""

    def __init__(self, module: nn.Module, f: Callable[..., Any]) -> None:
        super().__init__()
        self.module, self.f = module, f

    def forward(self, *arguments: Any) -> Any:
        """Return the function's result."""
        return self.f(*arguments)


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Return parameters and buffers by name, including buffers that no checkpoint keeps."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


class NotBatchable(Exception):
    """Error of learners that cannot take their steps together; its text is the reason."""


class BatchedLearner:
    """Learner of S runs that take every step together: one loss over stacked tensors, one optimiser over stacked parameters.

    Random numbers, gradients, Adam's moments and averages are those of separate runs, so that results are equal up to the order
    of additions. ``update`` takes one generator and gives one mapping of metrics for each learner. ``unstack`` writes
    everything back into the learners, whose checkpoints are those of separate runs. Raises NotBatchable for learners at
    different steps, learners that clip gradients by their norm, and learners whose loss draws random numbers or branches on a
    tensor.
    """

    def __init__(self, learners: Sequence[Any], generators: Sequence[torch.Generator]) -> None:
        if not all(isinstance(learner, StepLearner) and learner.batchable for learner in learners):
            raise NotBatchable("not every learner's step is a draw and a loss")
        self.learners: Sequence[StepLearner] = learners
        self.generators, self.fits = generators, [learner.fit for learner in self.learners]
        if any(fit.clip for fit in self.fits) or len({fit.step for fit in self.fits}) > 1:
            raise NotBatchable("learners clip gradients, or are at different steps")
        drawn = self._peek()
        for learner, own in zip(self.learners, drawn, strict=True):
            if learner.fit.step == 0:
                learner.begin(own)
        self._stack()
        try:
            with torch.no_grad():
                self.stack.call(self.learners[0].loss, _stacked(drawn))
        except (RuntimeError, AttributeError) as error:
            raise NotBatchable(str(error).splitlines()[0]) from error

    def update(self) -> list[Metrics]:
        """Take one step of every learner, and return their metrics."""
        metrics = self._descend(_stacked(self._draw()))
        return [{name: value[i] for name, value in metrics.items()} for i in range(len(self.learners))]

    def _draw(self) -> list[Any]:
        """Draw the next batch of every learner."""
        return [learner.draw(own) for learner, own in zip(self.learners, self.generators, strict=True)]

    def _peek(self) -> list[Any]:
        """Draw the next batches, and leave the generators as they were."""
        states = [generator.get_state() for generator in self.generators]
        drawn = self._draw()
        for generator, state in zip(self.generators, states, strict=True):
            generator.set_state(state)
        return drawn

    def unstack(self) -> None:
        """Write parameters, averages, optimisers and step counts back into the learners."""
        self.stack.unstack()
        for i, fit in enumerate(self.fits):
            for own, stacked in zip(fit.parameters(), self.parameters, strict=True):
                fit.optimiser.state[own] = {k: v if k == "step" else v[i] for k, v in _copied(self.optimiser.state[stacked])}
            for follower, count in zip(fit.ema_modules, self.counts, strict=True):
                follower.average.n_averaged.fill_(count)
            fit.step = self.step

    def _stack(self) -> None:
        """Stack the learners' modules, averages and optimiser states."""
        first = self.fits[0]
        modules = [nn.ModuleDict({"fitted": x.fit.module, **ema_modules(x.fit), **x.loss_networks()}) for x in self.learners]
        self.stack = Stack(modules)
        self.step, self.counts = first.step, [int(f.average.n_averaged) for f in first.ema_modules]
        name_of = {id(p): name for name, p in modules[0].named_parameters()}
        self.names = [name_of[id(p)] for p in first.parameters()]
        self.parameters = [self.stack.tensors[name].requires_grad_() for name in self.names]
        self.follows = [
            (
                get_ema_multi_avg_fn(f.decay),  # type: ignore[no-untyped-call]
                [self.stack.tensors[name_of[id(p)]] for p in f.average.parameters()],
                [self.stack.tensors[name_of[id(p)]] for p in f.part.parameters()],
            )
            for f in first.ema_modules
        ]
        self.optimiser = torch.optim.Adam(_groups(first.optimiser, self.parameters), fused=True)
        states = [[fit.optimiser.state[p] for p in fit.parameters()] for fit in self.fits if fit.optimiser.state]
        for parameter, slots in zip(self.parameters, zip(*states, strict=True), strict=False):
            moments = {key: torch.stack([slot[key] for slot in slots]) for key in ("exp_avg", "exp_avg_sq")}
            self.optimiser.state[parameter] = {"step": slots[0]["step"].clone(), **moments}

    @cached_property
    def _grads(self) -> Callable[..., tuple[dict[str, Tensor], Metrics]]:
        """Function (tensors, batches) -> the gradients of all runs' losses by name, and the metrics."""
        loss, names = self.learners[0].loss, set(self.names)

        def total(fitted: dict[str, Tensor], others: dict[str, Tensor], batches: Any) -> tuple[Tensor, Metrics]:
            losses, metrics = self.stack.call(loss, batches, tensors={**others, **fitted})
            return losses.sum(), metrics  # a run's loss uses its own tensors alone: the sum has every run's own gradient

        def grads(tensors: dict[str, Tensor], batches: Any) -> tuple[dict[str, Tensor], Metrics]:
            fitted = {name: tensors[name] for name in self.names}
            others = {name: tensor for name, tensor in tensors.items() if name not in names}
            found: tuple[dict[str, Tensor], Metrics] = torch.func.grad(total, has_aux=True)(fitted, others, batches)
            return found

        return self.learners[0].computing(grads, self.device)

    @property
    def device(self) -> torch.device:
        """Device of the learners."""
        return self.parameters[0].device

    def _descend(self, batches: Any) -> Metrics:
        """Take one step of all runs on their batches, and return the stacked metrics."""
        first = self.fits[0]
        first.step = self.step
        first.set_rate(self.optimiser)
        tensors = {name: tensor.detach() for name, tensor in self.stack.tensors.items()}
        grads, metrics = self._grads(tensors, batches)
        for parameter, name in zip(self.parameters, self.names, strict=True):
            parameter.grad = grads[name].contiguous()  # a fused optimiser relies on the layout
        self.optimiser.step()
        with torch.no_grad():
            for (average, averaged, followed), count in zip(self.follows, self.counts, strict=True):
                if count:
                    average(averaged, followed, None)
                else:
                    torch._foreach_copy_(averaged, followed)
        self.counts = [count + 1 for count in self.counts]
        self.step += 1
        return metrics


def _groups(optimiser: torch.optim.Optimizer, parameters: Sequence[Tensor]) -> list[dict[str, Any]]:
    """Return an optimiser's parameter groups, with its learning rates, for other parameters in the same order."""
    others = iter(parameters)
    return [
        {"params": [next(others) for _ in own["params"]], "lr": own["lr"], "initial_lr": own["initial_lr"]}
        for own in optimiser.param_groups
    ]


def _stacked(drawn: Sequence[Any]) -> Any:
    """Stack the tensors of all draws; everything else is that of the first."""
    return tree_map(lambda *leaves: torch.stack(leaves) if isinstance(leaves[0], Tensor) else leaves[0], *drawn)


def ema_modules(fit: Fit) -> dict[str, nn.Module]:
    """Return the moving averages of a fit by name."""
    modules: dict[str, nn.Module] = {f"average{i}": f.average.module for i, f in enumerate(fit.ema_modules)}
    return modules


def _copied(state: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Return the entries of an optimiser's state, copied."""
    return ((key, value.clone()) for key, value in state.items())
