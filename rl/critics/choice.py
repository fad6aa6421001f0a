"""Choice of a critic by its name in a recipe; its own settings stand beside the keys that all critics have."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from egd.config.components import Registry, bind, parameters, validate
from egd.config.failures import answering
from egd.contracts import ContractError, check_rows, name_of
from egd.errors import UserError, nearest
from egd.own_files import of_toolkit
from egd.tensors import isolated_rng
from rl.config import CriticConfig
from rl.critics.base import Critic, Shared
from rl.critics.td import TD
from rl.data.transitions import Batch

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
    make = partial(made, state, action, **own, **shared, device=device)
    if not of_toolkit(component.__module__):
        _try(make, config.name, state, action, device)
    critic: Critic = make()
    return critic


def _try(make: Callable[[], Critic], name: str, state: int, action: int, device: torch.device) -> None:
    """Raise UserError for a user's critic ``name`` that fails on two rows, whose Q or V are not one finite number each, or
    whose loss is no single number. The loss is tried where it takes a plain batch. The critic of the trial is another instance,
    so that nothing of the trial stays.
    """
    on = f"two rows of made-up states and actions, (2, {state}) and (2, {action})"
    with isolated_rng(seed=0), answering(name, "critic.name", on):
        states, actions, rewards = (torch.rand(2, *shape).sub(0.5).to(device) for shape in ((state,), (action,), ()))
        with answering(name, "critic.name"):
            critic = make()
        with torch.no_grad():
            for what, values in {"Q": critic.q(states, actions), "V": critic.v(states)}.items():
                try:
                    check_rows(values, states, type(critic))
                except ContractError as error:
                    raise ContractError(f"{what}: {error}") from None
                if not values.isfinite().all():
                    raise ContractError(f"{what} of {name_of(critic)} is not finite")
        if type(critic).learner is Critic.learner:
            loss, _ = critic.loss(Batch(states, actions, rewards, states.flip(0), torch.zeros_like(rewards)))
            if loss.shape or not loss.requires_grad:
                raise ContractError(f"{name_of(critic)} has a loss that is no single number, or that does not see its networks")


def critic_settings(config: CriticConfig) -> dict[str, Any]:
    """Return the settings that decide what is learned."""
    unused = set() if "expectile" in parameters(CRITICS.find(config.name, "critic.name")) else {"expectile"}
    return config.model_dump(mode="json", exclude=unused)


def beside_policy(config: CriticConfig, *, steps: int, batch: int) -> CriticConfig:
    """Return the same section for a critic that is trained together with a policy, in its steps and batches."""
    return config.model_copy(update={"name": f"{TD.__module__}:{TD.__name__}", "steps": steps, "batch": batch})
