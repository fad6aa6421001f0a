"""What the numbers of a recipe may be: types with bounds that are generous and real, for sections and for components' settings.

Each refuses truth values, infinity and what is not a number. A field that is none of these types fails a test
(``tests/rl/test_bounds.py``).
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError


def no_truth(value: Any) -> Any:
    """The value. A validation error for true and false, which are numbers to Python and to nobody else."""
    if isinstance(value, bool):
        raise PydanticCustomError("number", "input should be a number, not true or false")
    return value


_NUMBER = BeforeValidator(no_truth)

Steps = Annotated[int, Field(ge=0, le=10**9), _NUMBER]
"""Of training, of an environment."""
Every = Annotated[int, Field(ge=1, le=10**9), _NUMBER]
"""Steps between two events."""
Batch = Annotated[int, Field(ge=1, le=10**6), _NUMBER]
Width = Annotated[int, Field(ge=1, le=2**16), _NUMBER]
Layers = Annotated[int, Field(ge=1, le=1000), _NUMBER]
Members = Annotated[int, Field(ge=1, le=1000), _NUMBER]
Grid = Annotated[int, Field(ge=2, le=10_000), _NUMBER]
"""Points of time."""
SamplerSteps = Annotated[int, Field(ge=1, le=10_000), _NUMBER]
"""Steps of a sampler, of a plan."""
Samples = Annotated[int, Field(ge=1, le=10**7), _NUMBER]
Candidates = Annotated[int, Field(ge=1, le=10**5), _NUMBER]
"""Samples for every row."""
Points = Annotated[int, Field(ge=0, le=10**5), _NUMBER]
"""The same, or none."""
Rounds = Annotated[int, Field(ge=1, le=10_000), _NUMBER]
Episodes = Annotated[int, Field(ge=1, le=10**6), _NUMBER]
Environments = Annotated[int, Field(ge=1, le=10_000), _NUMBER]
Workers = Annotated[int, Field(ge=0, le=1024), _NUMBER]
Threads = Annotated[int, Field(ge=1, le=1024), _NUMBER]
Pixels = Annotated[int, Field(ge=1, le=4096), _NUMBER]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1), _NUMBER]
Index = Annotated[int, Field(ge=0, le=10**6), _NUMBER]

Number = Annotated[float, Field(ge=-1e9, le=1e9, allow_inf_nan=False), _NUMBER]
NotNegative = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False), _NUMBER]
Positive = Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False), _NUMBER]
Rate = Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False), _NUMBER]
"""Of learning."""
Beta = Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False), _NUMBER]
"""An inverse temperature."""
BetaOrZero = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False), _NUMBER]
Omega = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False), _NUMBER]
"""A guidance scale."""
Temperature = Annotated[float, Field(ge=0, le=1000, allow_inf_nan=False), _NUMBER]
"""Of a sampler's noise."""
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False), _NUMBER]
PositiveShare = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False), _NUMBER]
ProperShare = Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False), _NUMBER]
Decay = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False), _NUMBER]
"""Of an average, of a return; the least time of a sampler."""
