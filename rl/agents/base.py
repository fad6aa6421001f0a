"""What an agent is to the rest of the program: phases to be trained, and policies to be rolled out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from egd.runs.code_digest import Sources, UnknownCode
from egd.runs.phases import Phase, key_of, seed_of
from egd.runs.summaries import HOW
from egd.training.learners import HasComputing, Learner
from rl.critics.choice import critic_settings
from rl.data.transitions import Batch, OfflineData
from rl.parts.guided_policy import ActionSampler, Randomness
from rl.runs.config import CriticConfig, RunConfig
from rl.tasks import Task

if TYPE_CHECKING:
    from rl.parts.behaviour import Behaviour

CODE = Sources("rl.runs.job")
AFTERWARDS = ("method", "evaluation", "checkpoint_every", "log_every")
"""Sections of a recipe that have no part in training."""

Act: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""(standardised states (n, S), which of the scales (n,)) -> actions (n, A)."""
Made = TypeVar("Made")


class Agent(ABC):
    """One method on one task with one seed: its networks, how they are trained, how they act.

    An agent is a file in ``rl.agents`` and a line in its table. ``Config`` is the recipe that it understands. Policies
    go by names; one that has guidance scales stands for several, ``name@scale``.
    """

    Config: ClassVar[type[RunConfig]]
    learns_online: ClassVar[bool] = False
    """Whether training needs the environment."""

    def __init__(self, config: Any, data: OfflineData, device: torch.device) -> None:
        self.config, self.data, self.device = config, data, device
        self.states, self.actions = data.transitions.state.shape[1], data.transitions.action.shape[1]

    @classmethod  # noqa: B027
    def check(cls, config: Any) -> None:
        """UserError for what the types of the recipe cannot tell, before anything is trained."""

    @classmethod
    def batch_key(cls, config: Any) -> Mapping[str, Any]:
        """The settings in which runs agree that are trained together: all but the seed and the evaluation."""
        tree: dict[str, Any] = config.model_dump(mode="json", exclude={"seed": True, "evaluation": {"episodes", "envs"}})
        return tree

    @abstractmethod
    def phases(self) -> list[Phase]:
        """What is to be trained, in order."""

    @abstractmethod
    def policy(self, name: str, scales: Sequence[float], randomness: Randomness) -> Act:
        """A policy of ``scales``, row i at its own of them."""

    def policies(self) -> dict[str, float | None]:
        """The policies by name and the guidance scale that is each one's own; None for one that has no scale."""
        return {"policy": None}

    def scales(self, only: Sequence[float] | None = None) -> dict[str, list[float]]:
        """The policies to be evaluated and their guidance scales, or ``only`` these; [] for a policy that has none."""
        return {"policy": []}

    @property
    def headline(self) -> str:
        """The policy that stands for the method, ``name`` or ``name@scale``."""
        return "policy"

    def acting(self, seed: int) -> Act:
        """The headline at its own scale, with random numbers of that seed."""
        name, _, scale = self.headline.partition("@")
        return self.policy(name, [float(scale)] if scale else [], torch.Generator(self.device).manual_seed(seed))

    def evaluation_phase(self, phases: Sequence[Phase]) -> Phase:
        """Of its phases, the last one that the headline depends on: evaluations in mid-training are made in it."""
        return next(phase for phase in reversed(phases) if phase.name != "calibration")

    @property
    def entries(self) -> int:
        """How many normal numbers a draw takes: the entries of what is sampled, an action."""
        return self.actions

    def modules(self) -> dict[str, nn.Module]:
        """All that its policies read and that is not the same in all runs of a recipe."""
        return {}

    def ready(self, phase: str, generator: torch.Generator) -> None:  # noqa: B027
        """Make the policies usable in the middle of a phase."""

    def diagnostics(self, generator: torch.Generator) -> dict[str, Any]:
        """For ``summary.json``."""
        return {}

    def warnings(self, diagnostics: Mapping[str, Any]) -> list[str]:
        """What people should look at."""
        return []

    def save_figures(self, folder: Path, title: str, task: Task, rollouts: Any) -> None:  # noqa: B027
        """Figures, into the folder, from the rollouts of the evaluation."""

    # -- for those that inherit ----------------------------------------------------------------------------------

    def fresh(self, name: str, make: Callable[[], Made]) -> Made:
        """Make a network with initial weights that depend on the run's seed and its own name alone."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(self.config.seed, f"init/{name}"))
            made = make()
        return made.to(self.device) if isinstance(made, nn.Module) else made

    def phase(
        self,
        name: str,
        steps: int,
        learner: Learner,
        settings: Mapping[str, Any],
        *,
        data: Sequence[str] = tuple(Batch.__dataclass_fields__),
        after: Sequence[Phase] = (),
        owners: Sequence[object] = (),
        checkpoint_every: int = 0,
    ) -> Phase:
        """Offer a phase that other runs can use, its learner set to the recipe's precision.

        Its weights rest on ``settings`` of the recipe, on these members of the transitions, on the phases that it comes
        ``after``, and on code: that of the packages, and a user's own where it is part of the learner or named in the settings.
        A phase of a user's own agent, or made by ``owners`` that are a user's own, rests on all data and all of the recipe:
        nothing here can tell what such code looks at.
        """
        if isinstance(learner, HasComputing):
            learner.computing = self.config.computing
        made = None
        with suppress(UnknownCode):  # of a notebook, say: then every run trains the phase itself
            made = {"phase": name, "steps": steps, **self._cache_key(learner, settings, data, after, owners)}
        return Phase(name, steps, learner, cache_key=made, checkpoint_every=checkpoint_every)

    def _cache_key(
        self,
        learner: Learner,
        settings: Mapping[str, Any],
        data: Sequence[str],
        after: Sequence[Phase],
        owners: Sequence[object],
    ) -> dict[str, Any]:
        """All that decides the weights beside the phase's name and steps. UnknownCode where that cannot be told."""
        if untold := [phase.name for phase in after if phase.cache_key is None]:
            raise UnknownCode(*untold)
        config, apart = self.config, (self, *owners, ActionSampler)  # a phase that samples has the sampler among its settings
        return {
            "seed": config.seed,
            "torch": str(torch.__version__),
            "computing": {"device": self.device.type, "precision": config.precision, "compile": config.compile},
            "code": CODE.digest(),
            "learner": CODE.names(learner, apart_from=apart),
            "settings": CODE.settings(dict(settings)),
            "data": self.data.fingerprint(*data),
            "after": {phase.name: key_of(phase.cache_key) for phase in after},
            "own": self._own(owners),
        }

    def _own(self, owners: Sequence[object]) -> Any:
        """What a phase of a user's own agent rests on as well; None for the library's."""
        theirs = {*CODE.outside(Agent, RunConfig)}
        own = [name for name in CODE.outside(type(self), type(self.config), *map(type, owners)) if name not in theirs]
        recipe = self.config.model_dump(mode="json", exclude={*HOW, *AFTERWARDS})
        return {"code": own, "recipe": CODE.settings(recipe), "data": self.data.fingerprint()} if own else None

    def denoiser_phase(self, behaviour: Behaviour) -> Phase:
        """Offer the phase that fits a denoiser to the data's actions: the same for every agent, which so share it."""
        settings = self.config.model_dump(mode="json", include={"schedule", "denoiser"})
        return self.phase("denoiser", behaviour.config.denoiser.steps, behaviour.learner(), settings, data=("state", "action"))

    def critic_phase(self, learner: Learner, config: CriticConfig, after: Sequence[Phase] = ()) -> Phase:
        """Offer the phase that fits a critic to the data alone, or to what the phases before it have left."""
        return self.phase("critic", config.steps, learner, critic_settings(config), after=after)
