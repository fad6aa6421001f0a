"""Policies by selection: actions are drawn from the behaviour policy, and one is kept for its value."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator
from typing_extensions import override

from egd.bounds import Beta, Candidates
from egd.config.base import Strict, merge
from egd.config.components import parameters
from egd.errors import UserError
from rl.config import VARIES, Tempered, ValuedConfig
from rl.critics.choice import CRITICS
from rl.parts.action_sampling import Choice
from rl.parts.calibration import AdvantageCalibration
from rl.parts.critic import OfflineCritic
from rl.parts.policies import AgentPolicy


class SelectionConfig(Strict):
    """Settings of the choice among several samples of the behaviour policy."""

    candidates: Candidates = 64
    """Number of samples in each state."""
    by: Literal["best", "softmax", "expectile"] = "best"
    """Choice: the sample of highest Q; one drawn by softmax(beta Q); or one by IQL's implicit weights |tau - 1(Q < V)|."""
    beta: Beta = 3.0
    """Inverse temperature of ``softmax``."""
    energy_scale: Literal["raw", "advantage_std"] = "raw"
    """Unit of Q: the critic's, or the data's spread of Q - V."""
    clip_x0: bool = True
    """Keep the denoiser's x_0 within the range of the data's actions."""


class SelectingConfig(ValuedConfig):
    """Settings of a behaviour policy, a critic, and one or several selections."""

    selection: Annotated[SelectionConfig, VARIES] = SelectionConfig()
    selections: Annotated[dict[str, SelectionConfig], VARIES] = Field(default_factory=dict, max_length=1000)
    """Further policies; each takes the settings it does not give from ``selection``."""

    @model_validator(mode="before")
    @classmethod
    def _inherit(cls, value: Any) -> Any:
        if not isinstance(value, Mapping) or not isinstance(value.get("selections"), Mapping):
            return value
        headline = cls.completed(value).get("selection") or {}
        if not isinstance(headline, Mapping):
            return value
        own = {k: merge(headline, v or {}) if isinstance(v, Mapping | None) else v for k, v in value["selections"].items()}
        return {**value, "selections": own}

    @field_validator("selections")
    @classmethod
    def _not_reserved(cls, value: dict[str, Any]) -> dict[str, Any]:
        if taken := {"behaviour", "policy"} & set(value):
            raise ValueError(f"a selection cannot be called {taken.pop()}: that is a name of its own in the results")
        return value

    @property
    def named_selections(self) -> dict[str, SelectionConfig]:
        """Headline selection, under the name ``policy``, and the others."""
        return {"policy": self.selection, **self.selections}

    @property
    @override
    def tempered(self) -> Mapping[str, Tempered]:
        return self.named_selections


def check_selections(config: SelectingConfig) -> None:
    """Raise UserError for implicit weights of a critic that has no expectile."""
    has_expectile = "expectile" in parameters(CRITICS.find(config.critic.name, "critic.name"))
    for name, selection in config.named_selections.items():
        if selection.by == "expectile" and not has_expectile:
            key = "selection.by" if name == "policy" else f"selections.{name}.by"
            raise UserError(f"'expectile' are weights of implicit Q-learning; critic '{config.critic.name}' has none", key=key)


def selecting_policies(
    config: SelectingConfig, calibration: AdvantageCalibration, critic: OfflineCritic
) -> dict[str, AgentPolicy]:
    """Return ``behaviour``, and pi(a|s) ~ mu(a|s) w(s, a) of every selection: of samples of mu one is kept, by weights w."""
    found: dict[str, AgentPolicy] = {"behaviour": calibration.behaviour.policy(config.selection.clip_x0)}
    for name, selection in config.named_selections.items():
        energy = calibration.energy(selection.energy_scale)
        choice = Choice(energy, selection.beta, selection.candidates, selection.by, expectile=config.critic.expectile)
        policy = found[name] = calibration.behaviour.policy(selection.clip_x0, choice=choice)
        policy.part = critic
    return found
