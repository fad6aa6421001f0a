"""The least that a call has to do, and what the device can do at most: the two sides of a roofline."""

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
    """Floating-point operations of the matrix products of a call, and bytes that it cannot help touching."""

    flops: int
    bytes: int

    def least_seconds(self, rates: Rates) -> float:
        """The time of a program that is limited by the device alone."""
        return max(self.flops / rates.matmul, self.bytes / rates.copy)


def count(call: Callable[[], object]) -> Cost:
    """The cost of one call, its backward pass included; what is compiled is run as it is written.

    Bytes: every block of memory that is there before the call and that it uses (parameters, averages, the optimiser's
    states), and the result of every matrix product (activations and gradients), each once; of a data set, the rows that are
    gathered. What lies between two products can be fused with them and is not counted, nor is a second reading.
    """
    with torch.compiler.set_stance("force_eager"), _Counter() as counter:
        call()
    return Cost(counter.flops, counter.bytes)


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sums up as ``count`` says; a block of memory is known by its address.

    The formulas are FlopCounterMode's own; that class follows modules through the backward pass, too, which
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
    """Address -> size of the memory behind the tensors of a tree."""
    storages = [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
    return {storage.data_ptr(): storage.nbytes() for storage in storages}


@dataclass(frozen=True)
class Rates:
    """``matmul``: FLOP a second of a large matrix product. ``copy``: bytes a second read and written by a large copy."""

    matmul: float
    copy: float


def measure_rates(device: torch.device, dtype: torch.dtype = torch.float32, *, smoke: bool = False) -> Rates:
    """The best of a few trials on this device, in this precision and with the threads that torch has now."""
    large = device.type == "cuda"
    n, megabytes = (128, 1) if smoke else (8192, 1024) if large else (2048, 256)
    a = torch.randn(n, n, device=device).to(dtype)
    memory = torch.ones(megabytes * 2**18, device=device)  # float32
    matmul = min(elapsed(lambda: a @ a, device) for _ in range(6))
    copy = min(elapsed(memory.clone, device) for _ in range(6))
    return Rates(2 * n**3 / matmul, 2 * memory.nbytes / copy)


def elapsed(call: Callable[[], object], device: torch.device, times: int = 1) -> float:
    """Seconds that ``times`` calls take, the device's own work included."""
    synchronise(device)
    started = time.perf_counter()
    for _ in range(times):
        call()
    synchronise(device)
    return max(time.perf_counter() - started, math.ulp(1.0))


def synchronise(device: torch.device) -> None:
    """Wait for what the device still has to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
