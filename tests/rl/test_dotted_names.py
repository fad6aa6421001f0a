"""A variant may be called beta0.5: through training, evaluation and deployment."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from rl.deploy.module import load_module

VARIANTS = "{beta0: {energy: {name: analytic}, beta: 9}, beta0.5: {energy: {name: analytic}, beta: 0.5}, keys: {omega: 2}}"


@pytest.mark.slow
@pytest.mark.parametrize("training", ["phased", "joint"])
def test_a_variant_with_a_dot_in_its_name_is_a_variant(egd: Any, recipe: Path, tmp_path: Path, training: str) -> None:
    lines = recipe.read_text(encoding="utf-8").splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("variants:"))
    recipe.write_text(
        "\n".join([*lines[:at], f"variants: {VARIANTS}", f"training: {training}", *lines[at + 2 :]]), encoding="utf-8"
    )
    settings = ["--set", "variants.beta0.5.omega=1.5", "--set", 'variants."new.1"={omega: 3}']
    result = egd("run", recipe, "--out", tmp_path / "out", "--seeds", "0,1", *settings)
    assert result.exit_code == 0, result.output
    run = tmp_path / "out" / "egd-maze2d-umaze-v0" / "seed-1"
    policies = json.loads((run / "summary.json").read_text())["policies"]
    assert set(policies) == {"behaviour", "guided@1", "beta0@1", "beta0.5@1.5", "keys@2", "new.1@3"}
    again = egd("eval", run, "--policy", "beta0.5", "--policy", "guided@1", "--policy", "guided@1.0000001")
    assert again.exit_code == 0, again.output
    assert [words in again.output for words in ("beta0.5", "1.0000001")] == [True, True]
    module = load_module(run, "beta0.5")
    assert module(torch.zeros(3, module.observations), torch.zeros(3, module.draws, module.entries)).shape == (
        3,
        module.actions,
    )


def test_guidance_scales_that_differ_have_rows_of_their_own_and_equal_ones_share_one(
    egd: Any, recipe: Path, tmp_path: Path
) -> None:
    egd("run", recipe, "--out", tmp_path / "out", "--set", "variants=null")
    run = tmp_path / "out" / "egd-maze2d-umaze-v0" / "seed-0"
    result = egd("eval", run, "--omega", "1,1.0000001,1.0,1e-7", "--episodes", "1")
    assert result.exit_code == 0, result.output
    rows = [[cell.strip() for cell in line.split("│")] for line in result.output.splitlines() if "│ guided" in line]
    assert [row[row.index("guided") + 1] for row in rows] == ["1", "1.0000001", "1e-07"]
    for wrong in ("nan", "inf", "1,-inf", "-1", "1e400", "x", "1,,2"):
        refused = egd("eval", run, "--omega", wrong)
        assert refused.exit_code == 2 and "--omega" in refused.output and "Traceback" not in refused.output
