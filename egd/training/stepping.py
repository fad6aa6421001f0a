"""Steps of one learner on batches that a loop outside gathers."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from egd.training.batched import Runner, ema_modules, tensors_of
from egd.training.learners import Metrics, StepLearner


class Steps:
    """Steps of a learner on given draws of one shape, compiled where the learner's ``computing`` says so.

    The learner's own tensors are updated, so that code that uses them between steps needs no change; ``BatchedLearner`` has
    stacked copies, and draws for itself.
    """

    def __init__(self, learner: StepLearner) -> None:
        self.learner, self.fit = learner, learner.fit
        self.module = nn.ModuleDict({"fitted": self.fit.module, **ema_modules(self.fit), **learner.loss_networks()})
        names = {id(p): name for name, p in self.module.named_parameters()}
        self.fitted = {names[id(p)]: p for p in self.fit.parameters()}
        self.tensors = tensors_of(self.module)  # looked up once: loading and averaging write into the same tensors

    def __call__(self, drawn: Any) -> Metrics:
        """Take one step on a draw as the learner's ``draw`` returns it, and return the metrics."""
        if not self.learner.computing.compile:
            with self.learner.computing.autocast(self.fit.device):
                loss, metrics = self.learner.loss(drawn)
            self.fit.descend(loss)
            return metrics
        grads, metrics = self._grads({name: tensor.detach() for name, tensor in self.tensors.items()}, drawn)
        for name, parameter in self.fitted.items():
            parameter.grad = grads[name].contiguous()  # a fused optimiser relies on the layout
        self.fit.step_down()
        return {name: value.clone() for name, value in metrics.items()}  # on a GPU the next step overwrites the graph's outputs

    @cached_property
    def _grads(self) -> Callable[..., tuple[dict[str, Tensor], Metrics]]:
        """Function (tensors, drawn) -> the gradients by name, and the metrics."""
        runner = Runner(self.module, self.learner.loss)

        def loss(fitted: dict[str, Tensor], others: dict[str, Tensor], drawn: Any) -> tuple[Tensor, Metrics]:
            tensors = {f"module.{name}": tensor for name, tensor in (fitted | others).items()}
            found: tuple[Tensor, Metrics] = functional_call(runner, tensors, (drawn,))
            return found

        def grads(tensors: dict[str, Tensor], drawn: Any) -> tuple[dict[str, Tensor], Metrics]:
            fitted = {name: tensors[name] for name in self.fitted}
            others = {name: tensor for name, tensor in tensors.items() if name not in self.fitted}
            found: tuple[dict[str, Tensor], Metrics] = torch.func.grad(loss, has_aux=True)(fitted, others, drawn)
            return found

        return self.learner.computing(grads, self.fit.device)
