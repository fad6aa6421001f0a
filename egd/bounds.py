"""Types for the numbers of a recipe, each with generous bounds, for sections and for components' settings.

Every type refuses truth values, infinity and values that are no numbers. ``tests/test_bounds.py`` fails for a numeric field
that has none of these types.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError


def no_truth(value: Any) -> Any:
    """Return the value, and raise a validation error for true and false, which Python takes for numbers."""
    if isinstance(value, bool):
        raise PydanticCustomError("number", "input should be a number, not true or false")
    return value


_NUMBER = BeforeValidator(no_truth)

Steps = Annotated[int, Field(ge=0, le=10**9), _NUMBER]
"""Number of steps of training or of an environment."""
Every = Annotated[int, Field(ge=1, le=10**9), _NUMBER]
"""Number of steps between two events."""
Batch = Annotated[int, Field(ge=1, le=10**6), _NUMBER]
Width = Annotated[int, Field(ge=1, le=2**16), _NUMBER]
Layers = Annotated[int, Field(ge=1, le=1000), _NUMBER]
Members = Annotated[int, Field(ge=1, le=1000), _NUMBER]
Grid = Annotated[int, Field(ge=2, le=10_000), _NUMBER]
"""Number of points of a grid of times, or of steps of a trajectory."""
SamplerSteps = Annotated[int, Field(ge=1, le=10_000), _NUMBER]
"""Number of steps of a sampler."""
Samples = Annotated[int, Field(ge=1, le=10**7), _NUMBER]
Candidates = Annotated[int, Field(ge=1, le=10**5), _NUMBER]
"""Number of samples for every row."""
Points = Annotated[int, Field(ge=0, le=10**5), _NUMBER]
"""Number of samples for every row, or 0."""
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
"""Learning rate."""
Beta = Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False), _NUMBER]
"""Inverse temperature."""
BetaOrZero = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False), _NUMBER]
Omega = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False), _NUMBER]
"""Guidance scale."""
Temperature = Annotated[float, Field(ge=0, le=1000, allow_inf_nan=False), _NUMBER]
"""Factor of the noise that a sampler starts from."""
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False), _NUMBER]
PositiveShare = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False), _NUMBER]
ProperShare = Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False), _NUMBER]
Decay = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False), _NUMBER]
"""Decay of a moving average, discount of a return, or last time of a sampler."""
