"""How the arithmetic of a training step is done."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, ParamSpec, TypeVar

import torch
from torch.fx.experimental.proxy_tensor import make_fx

Precision = Literal["float32", "tf32", "bf16"]
P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class Computing:
    """``precision`` of matrix products, and whether a loss is compiled.

    ``bf16`` is autocast: weights, optimiser and losses stay float32, matrix products take bfloat16, which GPUs and CPUs with
    AMX or AVX512-BF16 multiply several times faster. ``tf32``: float32 with 10-bit mantissas in the products, on GPUs that
    have it. ``compile`` fuses what lies between the products (torch.compile, which needs a C++ compiler on a CPU and takes
    seconds at the first step).
    """

    precision: Precision = "float32"
    compile: bool = False

    def __call__(self, f: Callable[P, R], device: torch.device | str) -> Callable[P, R]:
        """The same function of tensors so computed; what ``compile`` makes of it is that of its first call's shapes."""

        def precise(*args: P.args, **kwargs: P.kwargs) -> R:
            with self.autocast(device):
                return f(*args, **kwargs)

        return _Traced(precise, torch.device(device).type) if self.compile else precise

    def autocast(self, device: torch.device | str) -> torch.autocast:
        """Within it products are taken in bfloat16 if that is the precision."""
        return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=self.precision == "bf16")

    def allow_tf32(self) -> None:
        """Set what is global: backward passes look at it too."""
        torch.set_float32_matmul_precision("high" if self.precision == "tf32" else "highest")


class _Traced:
    """A function as the flat graph of its operations, gradients included, compiled."""

    def __init__(self, f: Callable[..., Any], kind: str) -> None:
        self.f, self.kind = f, kind
        self.graph: Callable[..., Any] | None = None

    def __call__(self, *args: Any) -> Any:
        if self.graph is None:
            traced = make_fx(self.f)(*args)
            self.graph = torch.compile(traced, dynamic=False, mode="reduce-overhead" if self.kind == "cuda" else None)
        return self.graph(*args)
