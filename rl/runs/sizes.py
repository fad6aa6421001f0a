"""Estimates of the memory of offline RL runs, by the keys of the recipe that decide it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from egd.runs.resources import ROW, Estimates, Sizes, of_arrays, of_networks, sections_in, whole

SIMULATOR = 10_000_000  # estimated bytes of an environment
ROWS = 10_000  # assumed for a dataset of unknown size


def networks(tree: Mapping[str, Any]) -> Sizes:
    """Estimate the memory of weights; networks along the steps of a plan are convolutional."""
    return of_networks(tree, ("denoiser", "energy_network") if "plan" in tree else ())


def arrays(tree: Mapping[str, Any]) -> Sizes:
    """Estimate the memory of concurrent environments, their samples, the data and what is made of them."""
    evaluation = tree.get("evaluation", {})
    guidances = [tree.get("guidance") or {}, *(tree.get("variants") or {}).values()]
    scales = 1 + sum(1 + len(guidance.get("omegas", ())) for guidance in guidances)
    at_once = min(evaluation.get("envs", 0), evaluation.get("episodes", 0)) * scales
    sizes = of_arrays(tree, at_once or 1, besides=("data", "online"))
    sizes["evaluation.envs"] = at_once * SIMULATOR
    for path, section in sections_in(tree):
        if "candidates" in section:
            sizes[f"{path}.candidates"] = 1000 * max(1, at_once // scales) * section["candidates"]
    generator = (tree.get("data") or {}).get("generator") or {}
    steps = whole(generator.get("steps")) or ROWS
    sizes["data.generator.steps"] = ROW * steps
    sizes["support.actions"] = 32 * steps * (tree.get("support") or {}).get("actions", 0)
    sizes["online.steps"] = ROW * (tree.get("online") or {}).get("steps", 0)
    return sizes


ESTIMATES = Estimates(networks, arrays)
