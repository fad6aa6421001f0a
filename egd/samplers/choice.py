"""Samplers by their name or file, as a recipe gives them."""

from __future__ import annotations

from collections.abc import Iterable

from egd.config.catalogue import SAMPLERS
from egd.config.components import Spec, bind, parameters
from egd.config.parts import SAMPLER_PARTS
from egd.errors import UserError, nearest
from egd.types import Sampler


def choose(spec: Spec, key: str, *, others: Iterable[str] = ()) -> Sampler:
    """Return the sampler of a short name or ``path.py:function``, with its settings.

    Raises UserError (naming ``key``) for an unknown name, for a function that cannot be called as a ``Sampler``, and for a
    setting that it does not have; ``others`` are the keys of the same section, suggested for a misspelt setting.
    """
    known = set(parameters(SAMPLERS.find(spec.name, key)))
    if missing := SAMPLER_PARTS - known:
        raise UserError(f"'{spec.name}' is no sampler: it takes no {', '.join(sorted(missing))}", key=key)
    for name in spec.settings:
        if name not in known - SAMPLER_PARTS:
            options = {*others, *(known - SAMPLER_PARTS)}
            raise UserError(f"'{spec.name}' has no setting '{name}'; {nearest(name, options)}", key=f"{key}.{name}")
    chosen: Sampler = bind(SAMPLERS, spec, SAMPLER_PARTS, key)
    return chosen
