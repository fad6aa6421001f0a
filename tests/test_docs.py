"""Every Python block of the documentation runs, those of a page in one namespace, or each as a file of its own where the page
says so; tables of keys match the code.
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic_core import PydanticUndefined

from egd.config.base import ComponentConfig, Strict
from egd.config.catalogue import CATALOGUE
from egd.runs.recipe import RECIPE_KEYS
from rl.agents import AGENTS

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
SLOW = {"deploy", "edis", "samplers"}
"""Pages that train or export for more than some seconds."""
FILES = {"extending"}
"""Pages whose blocks are files."""
BLOCK = re.compile(r'^```python(?: title="([\w.]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)


def blocks(page: Path) -> list[tuple[int, str]]:
    """(line, source) of every Python block."""
    text = page.read_text()
    return [(text.count("\n", 0, match.start(2)), match[2]) for match in BLOCK.finditer(text)]


def files(text: str) -> dict[str, str]:
    """Name -> source of the files that a page has people write: blocks with a name, and classes that are named by a file."""
    named = {name: source for name, source in BLOCK.findall(text) if name}
    for _, source in BLOCK.findall(text):
        for component in re.findall(r"^class (\w+)", source, re.MULTILINE):
            named |= dict.fromkeys(re.findall(rf"(\w+\.py):{component}\b", text), source)
    return named


RUN = [pytest.param(p, marks=[pytest.mark.slow] * (p.stem in SLOW)) for p in PAGES if blocks(p)]


def defaults(model: type[Strict], head: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, default as the documentation writes it) of every key below a section."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Strict):
            yield from defaults(field.annotation, f"{head}{name}.")
        else:
            yield head + name, written(field.get_default(call_default_factory=True))


def written(value: Any) -> str:
    """A default as YAML would have it."""
    if value is PydanticUndefined:
        return "required"
    if isinstance(value, ComponentConfig):
        return value.name
    if isinstance(value, float):
        return f"{value:g}"
    special = {"None": "none", "True": "true", "False": "false", "()": "[]"}
    return special.get(str(value), str(value))


@pytest.mark.parametrize("page", RUN, ids=lambda p: p.name)
def test_python_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    monkeypatch.syspath_prepend(tmp_path)
    name = f"docs_{page.stem.lower()}"
    module = type(sys)(name)
    monkeypatch.setitem(sys.modules, name, module)  # dataclasses look their module up
    for file, source in files(page.read_text()).items():
        (tmp_path / file).write_text(source)
    dtype = torch.get_default_dtype()
    try:
        with torch.random.fork_rng():
            for line, source in blocks(page):
                if page.stem in FILES:
                    vars(module).clear()
                    module.__name__ = name
                exec(compile("\n" * line + source, str(page), "exec"), vars(module))
    finally:
        torch.set_default_dtype(dtype)
        for file in tmp_path.glob("*.py"):
            sys.modules.pop(file.stem, None)


KEYS = [(kind, key, default) for kind, agent in AGENTS.items() for key, default in defaults(agent.Config)]


def documented(kind: str) -> str:
    """The pages with the keys of a kind of agent: those of all, and its own."""
    return (ROOT / "docs/recipes.md").read_text() + (ROOT / f"docs/methods/{kind}.md").read_text()


@pytest.mark.parametrize("kind", AGENTS)
def test_every_recipe_key_is_documented_with_its_default(kind: str) -> None:
    text = documented(kind)
    assert [(k, default) for of, k, default in KEYS if of == kind and f"\n| `{k}` | `{default}` | " not in text] == []


@pytest.mark.parametrize("kind", AGENTS)
def test_no_key_is_documented_that_does_not_exist(kind: str) -> None:
    found = re.findall(r"^\| `([a-z_.0-9]+)` \| `[^`]*` \| ", documented(kind), re.MULTILINE)
    known = {key for _, key, _ in KEYS} | set(RECIPE_KEYS)
    components = {name for registry in CATALOGUE.values() for name in registry.names()}
    assert set(found) <= known | components


@pytest.mark.parametrize("registry", CATALOGUE.values(), ids=lambda r: r.package)
def test_every_component_is_documented(registry: Any) -> None:
    text = (ROOT / "docs/recipes.md").read_text()
    assert [name for name in registry.names() if f"`{name}`" not in text] == []


def test_every_diagnostic_is_documented() -> None:
    tree = ast.parse((ROOT / "rl/evaluation/diagnostics.py").read_text())
    dicts = [node for node in ast.walk(tree) if isinstance(node, ast.Dict)]
    keys = {k.value for d in dicts for k in d.keys if isinstance(k, ast.Constant) and isinstance(k.value, str)}
    text = (ROOT / "docs/diagnostics.md").read_text()
    headings = set(re.findall(r"^## (\w+)$", text, re.MULTILINE))
    assert {key for key in keys if f"`{key}`" not in text} <= headings
