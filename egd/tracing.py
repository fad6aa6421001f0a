"""Tracing of a function into one flat graph of tensor operations; what depends on no input is computed beforehand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing, get_proxy_mode, has_proxy_slot, make_fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from egd.errors import UserError

aten = torch.ops.aten
NO_OPS = {aten.detach.default, aten.alias.default, aten.lift_fresh_copy.default}
SHAPE_ONLY = {aten.empty_like, aten.full_like, aten.ones_like, aten.zeros_like, aten.new_zeros, aten.new_ones, aten.new_full}
"""Operations that depend on the shape of a tensor and not on its values."""


def trace(
    f: Callable[..., Tensor], inputs: Mapping[str, Tensor], decompositions: Mapping[Any, Any] | None = None
) -> fx.GraphModule:
    """Trace f(*inputs) into a graph for inputs of these shapes, gradients inside f included.

    What depends on no input (times, the schedule, time embeddings) is a constant of the graph, and weights are copied. The
    graph changes nothing in place. Raises UserError where the values of the inputs decide which operations are done, or where f
    draws random numbers.
    """

    def folded(*inputs: Tensor) -> Tensor:
        with Folding():
            return f(*inputs)

    with torch.no_grad():
        try:
            # functional, because a constant that is changed in place would have another value at the next call
            graph = make_fx(torch.func.functionalize(folded), dict(decompositions or {}))(*inputs.values())
        except RuntimeError as error:
            if "tracing tensor" not in str(error):
                raise
            raise UserError("the values of its inputs decide which operations it does, and a graph has no choice") from error
    for node, name in zip(graph.graph.find_nodes(op="placeholder"), inputs, strict=True):
        node.target = name
    return _tidy(graph).eval()


class Folding(TorchDispatchMode):
    """Mode of tracing that computes what depends on no input, and refuses random numbers but of generators made inside."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Return the operation's result."""
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded in func.tags and kwargs.get("generator") is None:
            raise UserError(f"it draws random numbers besides the noise that it is given ({func})")
        if func.overloadpacket not in SHAPE_ONLY and _traced((args, kwargs)):
            return func(*args, **kwargs)
        with disable_proxy_modes_tracing():
            return func(*args, **kwargs)


def _traced(arguments: Any) -> bool:
    """Tell whether one of the arguments depends on an input."""
    mode = get_proxy_mode()
    tensors = (leaf for leaf in tree_leaves(arguments) if isinstance(leaf, Tensor))
    return mode is not None and any(has_proxy_slot(tensor, mode.tracer) for tensor in tensors)


def _tidy(graph: fx.GraphModule) -> fx.GraphModule:
    """Remove what has no effect, and keep every constant once, as a buffer."""
    known: dict[tuple[Any, ...], fx.Node] = {}
    for node in list(graph.graph.nodes):
        if node.target in NO_OPS:
            node.replace_all_uses_with(node.args[0])
        elif node.op == "get_attr":
            value = getattr(graph, node.target)
            same = known.setdefault((value.data_ptr(), value.shape, value.stride(), value.dtype), node)
            if same is not node:
                node.replace_all_uses_with(same)
    graph.graph.eliminate_dead_code()
    constants = {}
    for node in graph.graph.find_nodes(op="get_attr"):
        constants[node.target] = _one_row(graph.graph, node, getattr(graph, node.target).detach()).clone()
    return fx.GraphModule(constants, graph.graph)


def _one_row(graph: fx.Graph, node: fx.Node, value: Tensor) -> Tensor:
    """Return a constant, or one row of it where all rows are the same; the graph then expands that row."""
    if value.ndim == 0 or len(value) < 2 or not bool((value == value[:1]).all()):
        return value
    with graph.inserting_after(node):
        rows = graph.call_function(aten.expand.default, (node, list(value.shape)))
    node.replace_all_uses_with(rows, delete_user_cb=lambda user: user is not rows)
    return value[:1]
