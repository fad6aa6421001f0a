"""A few of the mutated recipes of tools/mutate_recipes.py, which has the many."""

from __future__ import annotations

import pytest

from egd.experiments.toy2d.config import Toy2dConfig
from tools import mutate_recipes


def test_mutated_recipes_are_refused_by_name_or_sane() -> None:
    counts, failures = mutate_recipes.campaign(range(80), seed=0)
    assert not failures, "\n".join(failures)
    totals = {outcome: sum(n for (_, what), n in counts.items() if what == outcome) for outcome in mutate_recipes.OUTCOMES}
    assert totals["refused"] > 40 and totals["accepted"] > 8


@pytest.mark.parametrize(
    ("changed", "word"),
    [({"denoiser": {"lr": 1e30}}, "denoiser.lr"), ({"betas": (float("nan"),)}, "betas"), ({"threads": True}, "threads")],
)
def test_the_rule_that_judges_what_is_accepted_sees_an_absurd_number(changed: dict, word: str) -> None:
    base = Toy2dConfig.model_validate({"experiment": "toy2d", "task": "moons", "estimators": {"dps": "dps"}}).model_dump()
    assert mutate_recipes.absurd(base, base) == ""
    assert word in mutate_recipes.absurd({**base, **changed}, base)
