"""Choice of a recipe's generator by name, and construction of the online loop around it."""

from __future__ import annotations

from typing import Any

from egd.config.base import ComponentConfig
from egd.config.components import Registry, build, validate
from egd.errors import UserError
from rl.envs.making import env_factory
from rl.online.config import OnlineConfig
from rl.online.generators.base import Generator, GeneratorContext
from rl.online.learner import OnlineAgent, OnlineLearner
from rl.online.resumable_env import ResumableEnv
from rl.tasks import Task, find_task

GENERATORS = Registry("transition generator", "rl.online.generators")
KEY = "online.generator"


def check_online(config: Any) -> None:
    """Raise UserError for a recipe whose generator does not exist or does not fit."""
    online: OnlineConfig = config.online
    if online.generator is not None:
        check_generator(online.generator, find_task(config.task))


def check_generator(config: ComponentConfig, task: Task) -> None:
    """Raise UserError for a generator that does not exist or settings that do not fit it."""
    component = validate(GENERATORS, config.spec, {"context"}, KEY)
    if not (isinstance(component, type) and issubclass(component, Generator)):
        raise UserError(f"'{config.name}' is not a subclass of rl.online.generators.base.Generator", key=KEY)
    component.check(config.spec.settings, task)


def make_generator(config: ComponentConfig, context: GeneratorContext) -> Generator:
    """Build the recipe's generator."""
    made: Generator = build(GENERATORS, config.spec, {"context": context}, KEY)
    return made


def make_online_learner(agent: OnlineAgent, config: OnlineConfig, context: GeneratorContext, *, seed: int) -> OnlineLearner:
    """Build the recipe's online loop, with its generator and an environment of the task."""
    generator = None if config.generator is None else make_generator(config.generator, context)
    env = ResumableEnv(env_factory(context.task, context.task.observation_keys), seed)
    return OnlineLearner(agent, config, env, generator, seed=seed)
