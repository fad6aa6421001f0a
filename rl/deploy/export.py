"""Export of a policy to a file: torch.export's .pt2, or ONNX, with a small JSON file beside it that describes inputs and
output.
"""

from __future__ import annotations

import importlib
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from egd.errors import UserError
from egd.files import write_atomic
from rl.deploy.module import PolicyModule


def write(module: PolicyModule, path: Path, batch: int = 1) -> dict[str, Any]:
    """Write the policy for a fixed batch size and its description <path>.json, and return the description.

    Raises UserError as ``check_target`` does, and for a policy that is not one graph.
    """
    check_target(path)
    content = FORMATS[path.suffix](module, batch)
    about = describe(module, batch)
    write_atomic(path, content)
    write_atomic(path.with_name(path.name + ".json"), (json.dumps(about, indent=2) + "\n").encode())
    return about


def check_target(path: Path) -> None:
    """Raise UserError for a suffix other than .pt2 and .onnx, and where the exporter is not installed."""
    if path.suffix not in FORMATS:
        raise UserError(f"'{path}' does not end in {' or '.join(FORMATS)}, by which the format is chosen", key="--to")
    if path.suffix == ".onnx":
        _need("onnx", "onnxscript", instead="write a .pt2")


RUNTIME = ("onnx", "onnxscript", "onnxruntime")


def _need(*packages: str, instead: str = "do without ONNX") -> None:
    if missing := [package for package in packages if find_spec(package) is None]:
        raise UserError(f"{missing[0]} is not installed; pip install {' '.join(RUNTIME)}, or {instead}", key="ONNX")


def has_onnx_runtime() -> bool:
    """Return whether ``onnx_runtime`` can be used."""
    return all(map(find_spec, RUNTIME))


def describe(module: PolicyModule, batch: int) -> dict[str, Any]:
    """Return the policy's origin, and the names and shapes of its inputs and output, all of them float32."""
    config = module.agent.config
    return {
        "task": config.task,
        "agent": config.agent,
        "method": config.method,
        "seed": config.seed,
        "policy": module.policy,
        "omega": module.omega,
        "inputs": {name: list(tensor.shape) for name, tensor in module.inputs(batch).items()},
        "outputs": {"action": [batch, module.actions]},
        "noise": "standard normal, fresh for every call",
        "versions": {name: version(name) for name in ("egd", "torch")},
    }


def _pt2(module: PolicyModule, batch: int) -> bytes:
    file = io.BytesIO()
    with _quiet():
        torch.export.save(torch.export.export(module.graph(batch), (), module.inputs(batch)), file)
    return file.getvalue()


def _onnx(module: PolicyModule, batch: int) -> bytes:
    graph = module.graph(batch, torch.export.default_decompositions())
    names = list(module.inputs(batch))
    inputs = tuple(module.inputs(batch).values())
    try:
        with _quiet():
            program = torch.onnx.export(graph, inputs, dynamo=True, input_names=names, output_names=["action"], verbose=False)
    except torch.onnx.OnnxExporterError as error:
        raise UserError(
            f"policy '{module.policy}' does what ONNX has no operation for, such as eigenvalues; write .pt2 instead", key="--to"
        ) from error
    assert program is not None  # always so with dynamo=True
    content: bytes = program.model_proto.SerializeToString()
    return content


FORMATS: dict[str, Callable[[PolicyModule, int], bytes]] = {".pt2": _pt2, ".onnx": _onnx}


def onnx_runtime(module: PolicyModule, batch: int) -> Callable[..., Tensor]:
    """Return ``module`` for a fixed batch size in ONNX Runtime, on as many CPU threads as torch has.

    Raises UserError where it is not installed.
    """
    _need(*RUNTIME)
    runtime = importlib.import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = runtime.InferenceSession(_onnx(module, batch), options, providers=["CPUExecutionProvider"])
    names = list(module.inputs(1))

    def run(*inputs: Tensor) -> Tensor:
        (action,) = session.run(None, {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)})
        return torch.from_numpy(action)

    return run


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the exporters' internal warnings."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)
