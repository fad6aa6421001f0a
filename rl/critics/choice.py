"""Choice of a critic by its name in a recipe; its own settings stand beside the keys that all critics have."""

from __future__ import annotations

from typing import Any

import torch

from egd.config.components import Registry, bind, parameters, validate
from egd.contracts import ContractError, check_rows, name_of
from egd.errors import UserError, nearest
from rl.config import CriticConfig
from rl.critics.base import Critic, Shared
from rl.critics.td import TD

CRITICS = Registry("critic", "rl.critics")
PARTS = {"state", "action", "shared", "expectile", *Shared.__annotations__}


def check_critic(config: CriticConfig, *, support: bool = True) -> None:
    """Raise UserError for a critic that does not exist or that lacks the given settings.

    Without ``support``, meaning that the agent draws no support actions, a critic that needs them is refused, too.
    """
    component = CRITICS.find(config.name, "critic.name")
    if not (isinstance(component, type) and issubclass(component, Critic)):
        raise UserError(f"'{config.name}' is not a subclass of rl.critics.Critic", key="critic.name")
    own = set(parameters(component)) - PARTS
    for setting in config.settings:
        if setting not in own:
            options = {*type(config).model_fields, *own}
            raise UserError(f"'{config.name}' has no setting '{setting}'; {nearest(setting, options)}", key=f"critic.{setting}")
    validate(CRITICS, config.spec, PARTS, "critic")
    if not support and needs_support(config):
        raise UserError(f"this agent draws no support actions, which '{config.name}' needs; use iql", key="critic.name")


def needs_support(config: CriticConfig) -> bool:
    """Return whether the critic learns from actions of the behaviour policy."""
    component = CRITICS.find(config.name, "critic.name")
    return isinstance(component, type) and issubclass(component, Critic) and component.needs_support


def make_critic(config: CriticConfig, state: int, action: int, device: torch.device) -> Critic:
    """Build the critic, untrained, for states and actions with these numbers of entries."""
    component = CRITICS.find(config.name, "critic.name")
    own = {"expectile": config.expectile} if "expectile" in parameters(component) else {}
    shared = config.model_dump(include=set(Shared.__annotations__))
    made = bind(CRITICS, config.spec, PARTS, "critic")
    critic: Critic = made(state, action, **own, **shared, device=device)
    if ":" in config.name:
        _try(critic, state, action, device)
    return critic


@torch.no_grad()
def _try(critic: Critic, state: int, action: int, device: torch.device) -> None:
    """Raise UserError for a user's critic whose Q or V of two rows is not one finite number each."""
    states, actions = torch.zeros(2, state, device=device), torch.zeros(2, action, device=device)
    for what, values in {"Q": critic.q(states, actions), "V": critic.v(states)}.items():
        try:
            check_rows(values, states, type(critic))
        except ContractError as error:
            raise UserError(f"{what}: {error}", key="critic.name") from None
        if not values.isfinite().all():
            raise UserError(f"{what} of {name_of(critic)} is not finite", key="critic.name")


def critic_settings(config: CriticConfig) -> dict[str, Any]:
    """Return the settings that decide what is learned."""
    unused = set() if "expectile" in parameters(CRITICS.find(config.name, "critic.name")) else {"expectile"}
    return config.model_dump(mode="json", exclude=unused)


def beside_policy(config: CriticConfig, *, steps: int, batch: int) -> CriticConfig:
    """Return the same section for a critic that is trained together with a policy, in its steps and batches."""
    return config.model_copy(update={"name": f"{TD.__module__}:{TD.__name__}", "steps": steps, "batch": batch})
