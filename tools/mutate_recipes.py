"""Mutate every recipe and plan its runs: each must be refused by name or be sane, and none may end in a traceback.

    python tools/mutate_recipes.py --cases 10000 --seed 0

Nothing is trained. Accepted runs are judged by a separate rule (``absurd``), which goes by names of settings and not by the
planner's types. Exit code 1 if there is a traceback, a message that does not name the key, or an absurd number in a run.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import multiprocessing
import random
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from egd.config.base import flatten, to_yaml
from egd.errors import UserError
from egd.runs import experiment as experiments
from egd.runs.bases import read_recipe
from egd.runs.experiment import Options
from egd.runs.job import SingleRun

Tree = dict[str, Any]
Random = random.Random
ROOT = Path(__file__).parents[1]
OUTCOMES = ("refused", "accepted", "traceback", "unnamed", "absurd")

ABSURD = [
    math.nan, math.inf, -math.inf, "nan", 1e308, -1e308, 1e30, -1e30, 10**400, -(10**30), 10**12, -5, -1, -0.5, 0, 0.5, 1e-320,
    True, False, "1e999", "0x10", "１", "", " ", "many", "1,2", None,
]  # fmt: skip
TYPES = [
    None,
    True,
    "text",
    "",
    [],
    [1],
    ["a", {"b": []}],
    {},
    {"a": 1},
    {"name": 5},
    {"name": "x", "y": {"z": [1]}},
    3,
    2.5,
    [[[]]],
]
NAMES = [
    "nope",
    "os:system",
    "no/such/file.py:X",
    "egd.nowhere:X",
    ":",
    "a:b:c",
    "",
    " ",
    "energy",
    "egd.energies:",
    "x" * 300,
    "日本",
]
TABLES = ("tasks", "methods", "budgets", "variants", "targets", "estimators", "selections")


@dataclass
class Case:
    """Mutated recipe: its text, options of the command line, and the keys of which a message must name one."""

    tree: Tree
    keys: set[str]
    settings: list[str] = field(default_factory=list)
    text: str | None = None
    about: str = ""


@dataclass(frozen=True)
class Base:
    """Unchanged recipe, with one of its tasks and methods, and the settings of the resulting runs."""

    path: Path
    tree: Tree
    chosen: dict[str, Any]
    runs: list[Tree]


def plan(tree: Mapping[str, Any], source: str, settings: list[str], chosen: Mapping[str, Any]) -> list[Tree]:
    """Return the settings of the runs, as they would be kept in their folders."""
    options = Options(out=Path("nowhere"), source=source, device="auto", settings=settings, **chosen)
    jobs: list[Any] = experiments.load(tree.get("experiment"), source).plan(tree, options)
    planned = [run for job in jobs for run in ([job] if isinstance(job, SingleRun) else job.planned)]
    return [run.config.model_dump() for run in planned]


@cache
def bases() -> list[list[Base]]:
    """Return the bases of all recipes: the first task of each, with each of its methods."""
    return [of_recipe(path) for path in sorted((ROOT / "recipes").rglob("*.yaml"))]


def of_recipe(path: Path) -> list[Base]:
    """Return the bases of one recipe."""
    tree, found = read_recipe(path), list[Base]()
    for method in list(tree.get("methods") or {}) or [None]:
        chosen: dict[str, Any] = {"tasks": [next(iter(tree["tasks"]))], "methods": [method] if method else []}
        found.append(Base(path, tree, chosen, plan(tree, str(path), [], chosen)))
    return found


# -- what is changed -----------------------------------------------------------------------------------------------


def put(tree: Tree, path: list[str], value: Any) -> Tree:
    """Return a copy with the value at that place; other values in the way are replaced."""
    result = here = copy.deepcopy(tree)
    for key in path[:-1]:
        if isinstance(here.get(key), str):  # a component by its name alone
            here[key] = {"name": here[key]}
        if not isinstance(here.get(key), dict):
            here[key] = {}
        here = here[key]
    here[path[-1]] = value
    return result


def as_text(value: Any) -> str:
    """Format a value for ``--set``."""
    return yaml.safe_dump(value, default_flow_style=True, width=10**9, allow_unicode=True).removesuffix("\n...\n").strip()


def given(base: Base, path: list[str], value: Any, rng: Random, about: str) -> Case:
    """Return a case with the value in the file, or in ``--set``."""
    inner = {part for key in flatten(value) for part in key.split(".")} if isinstance(value, dict) else set()
    keys, about = {*path, *inner}, f"{about}: {'.'.join(path)} = {value!r:.60}"
    if rng.random() < 0.5:
        return Case(base.tree, keys, [f"{'.'.join(path)}={as_text(value)}"], about=f"--set {about}")
    return Case(put(base.tree, path, value), keys, about=about)


def leaf(base: Base, rng: Random) -> list[str]:
    """Draw a key of the run's settings, which the recipe need not name."""
    keys = [key for key in flatten(base.runs[0]) if key not in ("task", "method", "experiment", "device")]
    return rng.choice(keys).split(".")


def numbers(base: Base, rng: Random) -> Case:
    """Return a case with an absurd number in place of a number."""
    flat = flatten(base.runs[0])
    places = [key for key, value in flat.items() if isinstance(value, int | float) and not isinstance(value, bool)]
    return given(base, rng.choice(places).split("."), rng.choice(ABSURD), rng, "number")


def types(base: Base, rng: Random) -> Case:
    """Return a case with a value of another type anywhere."""
    path = leaf(base, rng)
    return given(base, path[: rng.randint(1, len(path))], rng.choice(TYPES), rng, "type")


def renamed(base: Base, rng: Random) -> Case:
    """Return a case with a misspelt key."""
    path = leaf(base, rng)
    word = list(path[-1])
    word.insert(rng.randrange(len(word) + 1), rng.choice("abcxyz_ 0é"))
    return given(base, [*path[:-1], "".join(word)], rng.choice([1, "x", {}]), rng, "renamed")


def removed(base: Base, rng: Random) -> Case:
    """Return a case without one of the recipe's keys."""
    tree = copy.deepcopy(base.tree)
    flat = [key.split(".") for key in flatten(tree)]
    path = rng.choice(flat)
    path = path[: rng.randint(1, len(path))]
    here = tree
    for key in path[:-1]:
        here = here[key] if isinstance(here, dict) and key in here else {}
    here.pop(path[-1], None)
    return Case(tree, set(path), about=f"removed: {'.'.join(path)}")


def nested(base: Base, rng: Random) -> Case:
    """Return a case with a section inside another section."""
    sections = [key for key, value in base.tree.items() if isinstance(value, dict)]
    inner, outer = rng.choice(sections), rng.choice(sections)
    tree = copy.deepcopy(base.tree)
    moved = tree.pop(inner)
    return Case(put(tree, [outer, inner], moved), {inner, outer}, about=f"nested: {inner} in {outer}")


def components(base: Base, rng: Random) -> Case:
    """Return a case with a component that does not exist."""
    flat = [key for key in flatten(base.runs[0]) if key.endswith(".name") or key in ("agent",)]
    path = rng.choice(flat or ["sampler.name"]).split(".")
    if any(key in TABLES for key in path) and rng.random() < 0.5:
        path = path[:-1]
    return given(base, path, rng.choice(NAMES), rng, "component")


def settings(base: Base, rng: Random) -> Case:
    """Return a case with a setting that a component does not have, or with an absurd value."""
    flat = [key.split(".")[:-1] for key in flatten(base.runs[0]) if key.endswith(".name")]
    names = [
        "samples",
        "beta",
        "seed",
        "eta",
        "rho",
        "components",
        "probes",
        "width",
        "config",
        "name",
        "omega",
        "power",
        "x y",
        "",
    ]
    path = [*rng.choice(flat or [["sampler"]]), rng.choice(names)]
    return given(base, path, rng.choice(ABSURD + TYPES), rng, "setting")


def tables(base: Base, rng: Random) -> Case:
    """Return a case with an invalid table of tasks, budgets, methods, variants and the like."""
    name = rng.choice(TABLES)
    entry = rng.choice(["x", "guided", "behaviour", "a.b", "", "1", "quick"])
    value = rng.choice([rng.choice(TYPES), {entry: rng.choice(TYPES)}, {entry: {"nope": 1}}, {entry: {"seed": math.nan}}])
    return given(base, [name], value, rng, "table")


def letters(base: Base, rng: Random) -> Case:
    """Return a case with some letters of the file changed."""
    text = list(base.path.read_text(encoding="utf-8"))
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(text))
        text[at : at + rng.choice([0, 0, 1, 1, 20])] = rng.choice(
            [
                "{",
                "}",
                "[",
                "]",
                ":",
                "\t",
                "\n",
                "- ",
                "&a ",
                "*a",
                "!!int ",
                "'",
                '"',
                "|",
                "#",
                ",",
                "\0",
                "é",
                "1e999",
                "%",
                "? ",
            ]
        )
    changed = "".join(text)
    return Case(base.tree, {"line", *base.tree, *_keys(changed)}, text=changed, about="letters")


def _keys(text: str) -> set[str]:
    """Return all keys of the text, or none where it is no longer YAML."""
    try:
        tree = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):
        return set()
    return {part for key in flatten(tree) for part in key.split(".")} if isinstance(tree, dict) else set()


MUTATIONS: list[Callable[[Base, Random], Case]] = [
    numbers, numbers, numbers, types, renamed, removed, nested, components, settings, tables, letters,
]  # fmt: skip


# -- how it is judged ----------------------------------------------------------------------------------------------

COUNTS = {
    "width",
    "widths",
    "layers",
    "blocks",
    "batch",
    "samples",
    "envs",
    "episodes",
    "grid",
    "ensemble",
    "horizon",
    "candidates",
}
COUNTS |= {
    "actions",
    "checkpoint_every",
    "log_every",
    "threads",
    "projections",
    "reference",
    "draws",
    "shown",
    "rounds",
    "delay",
}
FROM_ZERO = {"steps", "every", "workers", "seed", "window", "points"}
SHARES = {"gamma", "ema", "polyak", "expectile", "test_share", "online", "offline", "generated", "end"}
NOT_NEGATIVE = {"beta", "betas", "omega", "omegas", "temperature", "lr", "alpha", "noise", "eta", "pivot", "nu"}
LARGEST = {"lr": 1e4, "width": 1e5, "widths": 1e5, "layers": 1e4, "blocks": 1e4, "envs": 1e5, "workers": 1e4, "threads": 1e4}


def absurd(run: Tree, base: Tree) -> str:
    """Return what is absurd in a run's settings, in words, or an empty string."""
    flat, before = flatten(run), flatten(base)
    for key, value in flat.items():
        name = key.rpartition(".")[2]
        if isinstance(value, bool) and isinstance(before.get(key), int | float) and not isinstance(before[key], bool):
            return f"{key} is {value}, a truth value for a number"
        for number in value if isinstance(value, list | tuple) else [value]:
            if (wrong := _wrong(name, number)) and not key.startswith("targets"):  # there ``width`` is a tolerance
                return f"{key} is {number!r:.40}: {wrong}"
    return ""


def _wrong(name: str, value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return ""
    if not abs(value) <= LARGEST.get(name, 1e10):
        return "too large, or no number"
    if name in COUNTS and (value < 1 or value != int(value)):
        return "no count"
    if name in FROM_ZERO and (value < 0 or value != int(value)):
        return "no number of steps"
    if name in SHARES and not 0 <= value <= 1:
        return "no share"
    return "negative" if name in NOT_NEGATIVE and value < 0 else ""


ASKED = {"--task", "--method", "default_budget"}
"""Names of what refers to a table of the recipe."""


def judge(base: Base, case: Case, folder: Path) -> tuple[str, str]:
    """Plan the case, and return one of ``OUTCOMES`` with its message."""
    path = folder / "recipe.yaml"
    path.write_text(to_yaml(case.tree) if case.text is None else case.text, encoding="utf-8", newline="")
    try:
        runs = plan(read_recipe(path), str(path), case.settings, base.chosen)
    except UserError as error:
        message = f"{error.key or ''}: {error}".replace(str(path), "recipe")
        keys = case.keys | ASKED if case.keys & {"tasks", "methods", "budgets"} else case.keys
        keys |= set(base.chosen["methods"])  # the command asks for them, and the recipe may lack them
        named = any(key and key in message for key in keys) and len(message) < 3000
        return ("refused" if named else "unnamed"), message
    except Exception:
        return "traceback", traceback.format_exc()
    wrong = next((found for run in runs if (found := absurd(run, base.runs[0]))), "")
    return ("absurd", wrong) if wrong else ("accepted", "")


def campaign(cases: range, seed: int) -> tuple[Counter[tuple[str, str]], list[str]]:
    """Run the cases, and return counts by mutation and outcome, and the failures. A case does not depend on the others."""
    counts, failures = Counter[tuple[str, str]](), list[str]()
    with tempfile.TemporaryDirectory() as folder:
        for number in cases:
            rng = random.Random(f"{seed}/{number}")
            base, mutation = rng.choice(rng.choice(bases())), rng.choice(MUTATIONS)
            case = mutation(base, rng)
            outcome, words = judge(base, case, Path(folder))
            counts[mutation.__name__, outcome] += 1
            if outcome not in ("refused", "accepted"):
                method = " ".join(base.chosen["methods"])
                failures.append(f"--- case {number}, {base.path.name} {method}, {case.about}\n{outcome}: {words}")
    return counts, failures


def main() -> int:
    """Run the campaign, print a table, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--show", type=int, default=20, help="failures to print")
    parser.add_argument("--workers", type=int, default=1)
    arguments = parser.parse_args()
    parts = [range(first, arguments.cases, arguments.workers) for first in range(arguments.workers)]
    counts, failures = Counter[tuple[str, str]](), list[str]()
    with ProcessPoolExecutor(arguments.workers, multiprocessing.get_context("spawn")) as pool:
        for counted, failed in pool.map(campaign, parts, [arguments.seed] * len(parts)):
            counts, failures = counts + counted, failures + failed
    for failure in failures[: arguments.show]:
        print(failure)
    print(f"{'mutation':12} " + " ".join(f"{outcome:>10}" for outcome in OUTCOMES))
    for name in [*sorted({name for name, _ in counts}), "all"]:
        row = [
            sum(n for (which, what), n in counts.items() if what == outcome and name in (which, "all")) for outcome in OUTCOMES
        ]
        print(f"{name:12} " + " ".join(f"{n:10,}" for n in row))
    print(json.dumps({"cases": arguments.cases, "seed": arguments.seed, "failures": len(failures)}))
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
