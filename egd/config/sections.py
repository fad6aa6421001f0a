"""Sections that the recipes of several experiments share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, model_validator

from egd.bounds import (
    Batch,
    Candidates,
    Decay,
    Every,
    Grid,
    Layers,
    Positive,
    Rate,
    SamplerSteps,
    Samples,
    Seed,
    Steps,
    Threads,
    Width,
)
from egd.config.base import EXECUTION, Strict, Tree, merge
from egd.config.components import Spec
from egd.denoisers import Prediction
from egd.errors import UserError
from egd.networks.mlp import ActivationName
from egd.samplers import choose
from egd.schedules import Spacing
from egd.types import Sampler


class ChosenConfig(Strict):
    """A component by its ``name``, and the keys that all components of the section share; its own settings stand beside
    them.
    """

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)
    name: str

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @property
    def settings(self) -> Mapping[str, Any]:
        """The settings of the component alone."""
        return self.model_extra or {}

    @property
    def spec(self) -> Spec:
        """The specification for ``egd.config.components``."""
        return Spec(self.name, self.settings)


class TrainingConfig(Strict):
    """The training of a network."""

    steps: Steps = 1_000_000
    batch: Batch = 256
    lr: Rate = 3e-4
    decay: bool = True
    """Whether the learning rate decays to 0 along a cosine."""


class NetworkConfig(TrainingConfig):
    """A network of dense layers, and its training."""

    width: Width = 256
    layers: Layers = 3
    activation: ActivationName = "silu"


class EnergyNetworkConfig(NetworkConfig):
    """The network E_Theta of trained energies."""


class DenoiserConfig(TrainingConfig):
    """The network of a denoiser, and its training."""

    prediction: Prediction = "epsilon"
    width: Width = 256
    blocks: Layers = 7
    steps: Steps = 600_000
    ema: Decay = 0.995


class CalibrationConfig(Strict):
    """Estimation of posterior variances on a grid of times."""

    grid: Grid = 50
    samples: Samples = 8192


class SamplerConfig(ChosenConfig):
    """The sampler of the reverse process; its own settings stand beside these keys."""

    name: str = "dpm_solver_pp_2m"
    steps: SamplerSteps = 15
    spacing: Spacing = "log_snr"
    end: Decay = 1e-3

    def chosen(self) -> Sampler:
        """Return the sampler with its settings. Raises UserError where it does not exist or does not have them."""
        return choose(self.spec, "sampler", others=type(self).model_fields)


class SampleEvaluationConfig(Strict):
    """Comparison of guided samples with exact samples, or with data weighted by exp(-beta E)."""

    samples: Samples = 2000
    reference: Samples = 20_000
    """Samples that distances are measured to."""
    draws: Samples = 1_000_000
    """The largest number of data points that are weighted."""
    projections: Candidates = 128


class RunSettings(Strict):
    """Settings that every experiment's run has: one task, one seed. A run folder's ``config.yaml`` holds all settings."""

    experiment: str
    task: str
    seed: Seed = 0
    device: Annotated[str, EXECUTION] = "cpu"
    threads: Annotated[Threads, EXECUTION] = 1
    """CPU threads. Small networks gain nothing from more, and lose tenfold where another program needs the cores."""
    checkpoint_every: Every = 5000
    checkpoint_minutes: Annotated[Positive, EXECUTION] = 5.0
    """A checkpoint is also written when the last is this old. Changes no result."""
    log_every: Every = 500

    @model_validator(mode="before")
    @classmethod
    def _filled(cls, value: Any) -> Any:
        return cls.completed(value) if isinstance(value, Mapping) else value

    @classmethod
    def completed(cls, tree: Mapping[str, Any]) -> Tree:
        """Fill in sections whose defaults in this experiment differ from the library's: where a recipe gives a part of such a
        section, the rest keeps the experiment's defaults.
        """
        own = {key: field.default for key, field in cls.model_fields.items() if isinstance(field.default, BaseModel)}
        said = {key: set_here for key, default in own.items() if (set_here := default.model_dump(exclude_unset=True))}
        return dict(tree) | {
            key: merge(set_here, tree.get(key, {}), kept=type(own[key]).model_fields)
            for key, set_here in said.items()
            if isinstance(tree.get(key, {}), Mapping)
        }


def check_titles(estimators: Iterable[str], taken: Iterable[str]) -> None:
    """Raise UserError for an estimator whose name is that of a row in every table."""
    for title in set(estimators) & set(taken):
        raise UserError(f"'{title}' is a row of its own; call the estimator something else", key=f"estimators.{title}")
