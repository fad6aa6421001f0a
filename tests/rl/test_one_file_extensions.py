"""A part of every kind, added in one file outside the repository: the files and recipes are those of docs/extending.md."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from egd.config.base import merge

PAGE = Path(__file__).parents[2] / "docs" / "extending.md"
FILE = re.compile(r'^```python title="(\w+\.py)"\n(.*?)^```$', re.MULTILINE | re.DOTALL)
SNIPPET = re.compile(r"^```yaml\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^egd run \S+ (.*)$", re.MULTILINE)
ELSEWHERE = ("-b", "-t", "-o", "--out")
"""Options of the commands that name the budget, the task and the folder of a larger recipe."""

HEADINGS = re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
SECTIONS = {heading.partition("\n")[0]: heading for heading in HEADINGS if FILE.search(heading)}
KINDS = {
    "A schedule",
    "An energy",
    "A guidance rule",
    "A trained objective",
    "An energy with a network of its own",
    "A critic",
    "A method",
    "A dataset",
    "An experiment",
}


@pytest.fixture
def project(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, with the small recipe in a file."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "settings"))
    return recipe


def write(section: str, recipe: Path) -> list[str]:
    """Write a section's file, and the recipe with what the section changes; the options of its command."""
    ((name, source),) = FILE.findall(section)
    Path(name).write_text(source, encoding="utf-8")
    tree = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    for snippet in map(yaml.safe_load, SNIPPET.findall(section)):
        if "experiment" in snippet:
            tree = snippet
        else:
            tree = merge({key: value for key, value in tree.items() if key != "tasks" or key not in snippet}, snippet)
            tree |= {"variants": {}, "evaluation": {"episodes": 1, "envs": 1}}
    recipe.write_text(yaml.safe_dump(tree), encoding="utf-8")
    words = [word for command in COMMAND.findall(section) for word in shlex.split(command)]
    pairs = zip(words[::2], words[1::2], strict=True)
    return [word for pair in pairs if pair[0] not in ELSEWHERE for word in pair]


def test_every_kind_of_part_has_its_section() -> None:
    assert set(SECTIONS) == KINDS


@pytest.mark.parametrize("heading", SECTIONS)
def test_one_file_is_enough(egd: Any, project: Path, heading: str) -> None:
    options = write(SECTIONS[heading], project)
    result = egd("run", project, "--out", "out", "--device", "cpu", *options)
    assert result.exit_code == 0, result.output
    (summary,) = Path("out").rglob("summary.json")
    (name, _), *_ = FILE.findall(SECTIONS[heading])
    ran = json.loads((summary.parent / "code.json").read_text())["code"]
    assert [target.partition(":")[0] for target in ran] == [name]
    again = egd("eval", summary.parent, "--device", "cpu")
    assert again.exit_code == 0, again.output
    report = egd("report", summary.parent, "--out", "report")
    assert report.exit_code == 0, report.output
