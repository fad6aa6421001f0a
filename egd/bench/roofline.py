"""The two sides of a roofline: the least work that a call has to do, and the most that the device can do."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

aten = torch.ops.aten
GATHERS = {aten.index.Tensor, aten.index_select.default, aten.gather.default, aten.embedding.default}


@dataclass(frozen=True)
class Cost:
    """Floating-point operations in a call's matrix products, and the least number of bytes that it must read and write."""

    flops: int
    bytes: int

    def least_seconds(self, rates: Rates) -> float:
        """Return the seconds of a program that only the device's rates limit."""
        return max(self.flops / rates.matmul, self.bytes / rates.copy)


def count(call: Callable[[], object]) -> Cost:
    """Count the cost of one call, its backward pass included. Compiled code is counted in its eager form.

    Bytes count every block of memory that exists before the call and is used in it (parameters, averages, optimiser states),
    and the result of every matrix product (activations and gradients), each once. Of a data set only the gathered rows count.
    Operations between two products can be fused with them and are not counted, nor are repeated reads.
    """
    with torch.compiler.set_stance("force_eager"), _Counter() as counter:
        call()
    return Cost(counter.flops, counter.bytes)


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counter of operations and bytes as ``count`` describes; a block of memory is identified by its address.

    The formulas are those of FlopCounterMode. That class also follows modules through the backward pass, which
    ``torch.autograd.grad`` within ``torch.func.grad`` does not allow.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = self.bytes = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in GATHERS:
            with self:  # composite operations arrive whole in inference mode
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        out = func(*args, **kwargs)
        self._enter(func, args, kwargs, out)
        return out

    def _enter(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        inputs = _blocks((args, kwargs))
        made = {address: size for address, size in _blocks(out).items() if address not in inputs}
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **kwargs, out_val=out)
        if func in GATHERS:
            inputs = _blocks(args[1:])
        if formula is not None or func in GATHERS:
            self.bytes += sum(made.values())
        self.bytes += sum(size for address, size in inputs.items() if address not in self.known)
        self.known |= inputs.keys() | made.keys()


def _blocks(tree: Any) -> dict[int, int]:
    """Return address -> size of the memory behind the tensors in a tree."""
    storages = [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
    return {storage.data_ptr(): storage.nbytes() for storage in storages}


@dataclass(frozen=True)
class Rates:
    """The device's rates. ``matmul``: floating-point operations a second in a large matrix product. ``copy``: bytes read and
    written a second in a large copy.
    """

    matmul: float
    copy: float


def measure_rates(device: torch.device, dtype: torch.dtype = torch.float32, *, smoke: bool = False) -> Rates:
    """Measure the best rates of a few trials on this device, at this precision and the present number of torch threads."""
    large = device.type == "cuda"
    n, megabytes = (128, 1) if smoke else (8192, 1024) if large else (2048, 256)
    a = torch.randn(n, n, device=device).to(dtype)
    memory = torch.ones(megabytes * 2**18, device=device)  # float32
    matmul = min(elapsed(lambda: a @ a, device) for _ in range(6))
    copy = min(elapsed(memory.clone, device) for _ in range(6))
    return Rates(2 * n**3 / matmul, 2 * memory.nbytes / copy)


def elapsed(call: Callable[[], object], device: torch.device, times: int = 1) -> float:
    """Return the seconds that ``times`` calls take, including the device's work."""
    synchronise(device)
    started = time.perf_counter()
    for _ in range(times):
        call()
    synchronise(device)
    return max(time.perf_counter() - started, math.ulp(1.0))


def synchronise(device: torch.device) -> None:
    """Wait until the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
