"""Precision and compilation of training steps."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, ParamSpec, TypeVar, cast

import torch
from torch.fx.experimental.proxy_tensor import make_fx

from egd.errors import Notice

Precision = Literal["float32", "tf32", "bf16"]
P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class Computing:
    """Settings of a step's arithmetic: the ``precision`` of matrix products, and whether a loss is compiled.

    ``bf16`` is autocast: weights, optimiser and losses stay float32, and matrix products take bfloat16, which GPUs and CPUs
    with AMX or AVX512-BF16 multiply several times faster. ``tf32`` is float32 with 10-bit mantissas in the products, on GPUs
    that have it. ``compile`` fuses the operations between the products (torch.compile, which needs a C++ compiler on a CPU and
    takes seconds at the first step).
    """

    precision: Precision = "float32"
    compile: bool = False

    def __call__(self, f: Callable[P, R], device: torch.device | str) -> Callable[P, R]:
        """Return the function of tensors f, computed with these settings; ``compile`` fixes the shapes of the first call."""

        def precise(*args: P.args, **kwargs: P.kwargs) -> R:
            with self.autocast(device):
                return f(*args, **kwargs)

        kind = torch.device(device).type
        return cast("Callable[P, R]", _Traced(precise, kind)) if self.compile else precise

    def autocast(self, device: torch.device | str) -> torch.autocast:
        """Return a context in which products are taken in bfloat16, if that is the precision."""
        return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=self.precision == "bf16")


def set_up(device: torch.device | str, threads: int, precision: Precision = "float32") -> None:
    """Set the CPU's threads, and the precision of float32 products.

    On a GPU TF32 is set if that is the precision; on a CPU the faster library for products, where it is as exact.
    """
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(fastest(device, precision))


def fastest(device: torch.device | str, precision: Precision = "float32", rows: int = 256) -> str:
    """Return torch's name for the fastest precision setting for products of matrices of ``rows`` rows, within ``precision``."""
    if torch.device(device).type == "cpu":
        return "medium" if onednn_is_exact() and rows >= 64 else "highest"  # MKL takes 5 us for a row, oneDNN 20
    return "high" if precision == "tf32" else "highest"


@contextmanager
def products(precision: str) -> Iterator[None]:
    """Take float32 products within a with-block by one of torch's precision settings."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def quick_products(device: torch.device | str, rows: int) -> AbstractContextManager[None]:
    """Return a context with the faster library for float32 products of ``rows`` rows, on a CPU; nothing changes on a GPU."""
    return products(fastest(device, rows=rows)) if torch.device(device).type == "cpu" else nullcontext()


@cache
def onednn_is_exact() -> bool:
    """Tell whether float32 products lose nothing by torch's precision "medium" on this CPU.

    The setting moves them from MKL, which is slow on processors that are not Intel's, to oneDNN with leave to use bfloat16.
    oneDNN uses bfloat16 only where there is AMX; elsewhere its products are float32's, and twice as fast on an AMD EPYC.
    """
    a, b = torch.randn(2, 256, 256, generator=torch.Generator().manual_seed(0), dtype=torch.float32).unbind()
    with products("medium"):
        return float((a @ b - (a.double() @ b.double())).abs().max()) < 1e-3  # 3e-5 in float32, 0.2 in bfloat16


class _Traced:
    """Function as the compiled flat graph of its operations, gradients included."""

    def __init__(self, f: Callable[..., Any], kind: str) -> None:
        self.f, self.kind = f, kind
        self.graph: Callable[..., Any] | None = None

    def __call__(self, *args: Any) -> Any:
        if self.graph is None:
            self.graph = compiled(make_fx(self.f)(*args), args, self.kind)
        return self.graph(*args)


def compiled(graph: Callable[..., R], inputs: tuple[Any, ...], kind: str) -> Callable[..., R]:
    """Compile a graph for these inputs, on a device of this kind.

    Where that fails (on a CPU it needs a C++ compiler), warn and return the graph as it is.
    """
    fast = torch.compile(graph, dynamic=False, mode="reduce-overhead" if kind == "cuda" else None)
    try:
        fast(*inputs)
    except Exception as error:  # a compiler that is missing or broken may raise anything
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        warnings.warn(f"torch.compile failed, what it was to compile runs as it is, slower: {reason}", Notice, stacklevel=4)
        return graph
    return fast
