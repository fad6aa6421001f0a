"""What no module does, read from the code itself: run what a file says, or write text that is another on every machine."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import yaml

from egd.config import yaml_text

ROOT = Path(__file__).parent.parent
FILES = sorted(path for folder in ("egd", "rl", "tools") for path in (ROOT / folder).rglob("*.py"))

RUNS_DATA = {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "jsonpickle"}
"""Modules that run what they read."""
CALLS = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "torch.load", "torch.hub.load", "yaml.load"}
CALLS |= {"yaml.unsafe_load", "yaml.full_load", "pd.read_pickle", "runpy.run_path"}
IMPORTS_BY_NAME = {"egd/config/components.py", "egd/__init__.py"}
"""Where code is found by a name that a file may give, through ``egd.config.trust``; the other one has names of its own."""
LIBRARIES = {"diffusers", "imageio_ffmpeg", "onnxruntime", "huggingface_hub.utils.logging"}
"""Names that are written out where they are imported late."""


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    """(dotted name, call), as written."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def constant(call: ast.Call, name: str, place: int | None = None) -> object:
    """An argument that is written out; None where it is not given."""
    found = [k.value for k in call.keywords if k.arg == name]
    if not found and place is not None and len(call.args) > place:
        found = [call.args[place]]
    return found[0].value if found and isinstance(found[0], ast.Constant) else (ast.unparse(found[0]) if found else None)


def test_nothing_that_is_read_is_run() -> None:
    found = []
    for path in FILES:
        imports = [node for node in ast.walk(parsed(path)) if isinstance(node, ast.Import | ast.ImportFrom)]
        modules = {a.name for n in imports if isinstance(n, ast.Import) for a in n.names}
        modules |= {n.module or "" for n in imports if isinstance(n, ast.ImportFrom)}
        found += [f"{path}: {name}" for name in modules if name.partition(".")[0] in RUNS_DATA]
        for name, call in calls(path):
            if name == "yaml.load" and ast.unparse(call.args[1]) == "_Loader":  # see the test below
                continue
            runs = name in CALLS or constant(call, "allow_pickle") or constant(call, "shell") not in (None, False)
            found += [f"{path}:{call.lineno}: {name}"] if runs else []
    assert found == []


def test_our_yaml_is_safe_yaml() -> None:
    assert issubclass(yaml_text._Loader, yaml.SafeLoader)


def test_code_is_found_by_name_in_one_place_only() -> None:
    names = {"import_module", "spec_from_file_location", "exec_module"}
    found = [
        f"{path}:{call.lineno}: {name}"
        for path in FILES
        if str(path.relative_to(ROOT)) not in IMPORTS_BY_NAME
        and not str(path.relative_to(ROOT)).startswith(("rl/bench", "tools"))
        for name, call in calls(path)
        if name.rpartition(".")[2] in names and constant(call, "name", 0) not in LIBRARIES
    ]
    assert found == []


def wants_encoding(name: str, call: ast.Call) -> bool:
    """Whether a call reads or writes text in whatever encoding the machine has."""
    if any(k.arg == "encoding" for k in call.keywords):
        return False
    of, _, method = name.rpartition(".")
    if of and method in ("read_text", "write_text", "NamedTemporaryFile", "TemporaryFile"):
        mode = constant(call, "mode", 0) if method.endswith("File") else "r"
        return mode is not None and "b" not in str(mode)
    if name == "open" or (method == "open" and of != "os"):
        mode = constant(call, "mode", 1 if name == "open" else 0)
        return (
            (name == "open" or mode is not None or name.endswith("path.open"))
            and "b" not in str(mode or "r")
            and len(str(mode)) < 4
        )
    return constant(call, "text") is True or constant(call, "universal_newlines") is True


def test_text_has_an_encoding() -> None:
    assert [f"{p}:{c.lineno}: {name}" for p in FILES for name, c in calls(p) if wants_encoding(name, c)] == []
