"""Show that a change of the code changes no result: record every weight and score of small runs, before and after.

    git stash; python tools/same_results.py record before.json; git stash pop
    python tools/same_results.py record after.json
    python tools/same_results.py compare before.json after.json

Every method of every shipped recipe is trained at the recipe's ``smoke`` budget with one seed on a CPU. A phase is recorded as
the digests of its tensors, whatever their names, and a run as its scores. Exit code 1 where anything differs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

RUNS: tuple[tuple[str, ...], ...] = (
    ("quickstart.yaml",),
    ("benchmark.yaml", "-t", "maze2d-umaze"),
    ("benchmark.yaml", "-t", "door-human", "-m", "aepo", "-m", "qgpo", "-m", "cql", "-m", "iql"),
    ("ablation.yaml", "-t", "maze2d-umaze"),
    ("aepo_adroit.yaml", "-t", "door-human"),
    ("diffuser_pointmaze.yaml", "-t", "maze2d-umaze"),
    ("edis_pointmaze.yaml", "-t", "maze2d-umaze"),
    ("finetune_published.yaml", "-t", "pen-cloned"),
    ("toy2d.yaml",),
    ("digits.yaml",),
)
"""Recipes, with the options that select their runs."""


def record(recipes: Path, work: Path, only: str, methods: list[str]) -> dict[str, Any]:
    """Run the recipes that match, and return digests of their phases and their scores. Raise RuntimeError for a command that
    fails.
    """
    found: dict[str, Any] = {}
    egd = [str(Path(sys.executable).parent / "egd")]
    for number, (recipe, *options) in enumerate(RUNS):
        if only not in " ".join((recipe, *options)):
            continue
        out = work / str(number)
        options += [word for method in methods for word in ("-m", method)]
        command = [*egd, "run", str(recipes / recipe), "-b", "smoke", "--device", "cpu", "--out", str(out), *options]
        environment = {**os.environ, "EGD_STORE": "", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, check=False, capture_output=True)
        if done.returncode:
            raise RuntimeError(f"{recipe} {' '.join(options)}: {done.stderr.decode()[-2000:]}")
        print(f"{recipe} {' '.join(options)}: {len(list(out.rglob('summary.json')))} runs", flush=True)
        for summary in sorted(out.rglob("summary.json")):
            name = f"{number} {recipe} {summary.parent.relative_to(out)}"
            found[name] = {"phases": phases(summary.parent), "scores": scores(json.loads(summary.read_text(encoding="utf-8")))}
    return found


def phases(run: Path) -> dict[str, list[str]]:
    """Return, by phase, the digests of its tensors, sorted."""
    files = [path for path in sorted(run.rglob("*.safetensors")) if path.parent.name != "previous"]
    return {path.stem: sorted(digest(tensor) for tensor in load_file(path).values()) for path in files}


def digest(tensor: torch.Tensor) -> str:
    """Return a digest of shape, type and bytes."""
    content = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return hashlib.blake2b(f"{tensor.dtype} {tuple(tensor.shape)}".encode() + content, digest_size=12).hexdigest()


def scores(summary: Any) -> Any:
    """Return a summary without times, versions and digests."""
    if isinstance(summary, dict):
        timed = ("seconds", "versions", "digest", "action_ms", "reused", "device", "ms")
        return {key: scores(value) for key, value in summary.items() if key not in timed}
    return [scores(value) for value in summary] if isinstance(summary, list) else summary


def compare(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Return the differences of the runs of ``after``, one per line."""
    lines = [f"{name}: after alone" for name in sorted(after.keys() - before.keys())]
    for name in sorted(before.keys() & after.keys()):
        one, other = before[name], after[name]
        lines += [f"{name}: phase {p} in one alone" for p in sorted(one["phases"].keys() ^ other["phases"].keys())]
        shared = sorted(one["phases"].keys() & other["phases"].keys())
        lines += [f"{name}: weights of {p} differ" for p in shared if one["phases"][p] != other["phases"][p]]
        lines += [f"{name}: scores differ"] * (numbers(one["scores"]) != numbers(other["scores"]))
    return lines


def numbers(tree: Any) -> list[str]:
    """Return all numbers in a tree, whatever their keys."""
    if isinstance(tree, dict | list):
        return sorted(n for value in (tree.values() if isinstance(tree, dict) else tree) for n in numbers(value))
    return [repr(tree)] if isinstance(tree, int | float) and not isinstance(tree, bool) else []


def main() -> int:
    """Record or compare, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["record", "compare"])
    parser.add_argument("files", type=Path, nargs="+", help="record: one file; compare: two")
    parser.add_argument("--recipes", type=Path, default=Path("recipes"), help="where the recipes are")
    parser.add_argument("--only", default="", help="record: recipes with this in their line of RUNS")
    parser.add_argument("-m", "--method", action="append", default=[], help="record: only this method of them")
    options = parser.parse_args()
    if options.action == "record":
        with tempfile.TemporaryDirectory(prefix="egd-same-") as work:
            found = record(options.recipes.resolve(), Path(work), options.only, options.method)
        options.files[0].write_text(json.dumps(found, indent=1), encoding="utf-8")
        print(f"{len(found)} runs, {sum(len(run['phases']) for run in found.values())} phases")
        return 0
    before, after = (json.loads(path.read_text(encoding="utf-8")) for path in options.files)
    lines = compare(before, after)
    print("\n".join(lines) or f"{len(after)} of {len(before)} runs are the same, bit for bit")
    return 1 if lines else 0


if __name__ == "__main__":
    raise SystemExit(main())
