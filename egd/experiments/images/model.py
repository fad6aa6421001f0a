"""The trained parts of an image run, and guided sampling with them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from functools import cached_property, partial
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from egd.config.catalogue import OBJECTIVES, POSTERIORS, RULES, WRAPPERS, check_energy, is_trained
from egd.config.components import Registry, build, validate, wanted_parts
from egd.config.failures import answering
from egd.config.parts import POSTERIOR_PARTS, RULE_PARTS, UNCALIBRATED_PARTS, WRAPPER_PARTS
from egd.config.sections import check_titles
from egd.config.trial import Trial, names_code
from egd.contracts import energy_values, name_of
from egd.denoisers import at_unit_scale
from egd.errors import UserError
from egd.experiments.images.classifier import Classifier, ClassifierLearner
from egd.experiments.images.config import EstimatorConfig, ImagesConfig
from egd.experiments.images.data import ImageSet, make_context
from egd.objectives.base import ObjectiveNetwork
from egd.runs.labels import label
from egd.runs.phase import Phase, fresh, seed_of
from egd.runs.safe_names import apart, folder_name
from egd.schedules import Diffusers
from egd.schedules.stepping import check_guidable
from egd.tensors import flat_context
from egd.training.calibration import Calibration
from egd.training.learners import DenoiserLearner, EnergyLearner, Fit
from egd.types import BringsNetwork, Context, Denoiser, Energy, Posterior, Support

DATA = Registry("set of images", "egd.experiments.images.data", ("split",))
IMAGE_ENERGIES = Registry("energy of images", "egd.experiments.images.energies", ("__call__",), 2)
DATA_ROW, UNGUIDED = "data, weighted", "unguided"
M = TypeVar("M", bound=nn.Module)


class EnergyKey(NamedTuple):
    """A trained energy, by its estimator, target and beta."""

    estimator: str
    target: str
    beta: float

    @property
    def phase(self) -> str:
        """Name of the phase that trains it."""
        return f"energy_{self.estimator}_{self.target}_beta{label(self.beta)}"


def trained_energies(config: ImagesConfig) -> list[EnergyKey]:
    """List the energies that are trained: those of the estimators whose guidance is an objective."""
    return [
        EnergyKey(name, target, beta)
        for name, estimator in config.estimators.items()
        if is_trained(estimator.guidance.name, f"estimators.{name}.guidance")
        for target, wanted in config.targets.items()
        for beta in wanted.betas
    ]


def check_components(config: ImagesConfig) -> None:
    """Raise UserError for a component that does not exist, or a setting that it does not have, before anything is trained."""
    validate(DATA, config.data.spec, set(), "data")
    trial = Trial((1, 8, 8), make_schedule(config), runs_own=False)  # no image is read yet
    for name, target in config.targets.items():
        validate(IMAGE_ENERGIES, target.energy.spec, {"classifier"}, f"targets.{name}.energy")
    check_titles(config.estimators, (DATA_ROW, UNGUIDED))
    phases = {", ".join(map(str, trained)): trained.phase for trained in trained_energies(config)}
    apart(phases, "estimators")
    for phase in phases.values():
        folder_name(phase, "estimators")
    for name, estimator in config.estimators.items():
        _check_guidance(estimator, f"estimators.{name}.guidance")
        validate(POSTERIORS, estimator.posterior.spec, POSTERIOR_PARTS, f"estimators.{name}.posterior")
        validate(RULES, estimator.rule.spec, RULE_PARTS, f"estimators.{name}.rule")
        if not isinstance(estimator.clip_x0, bool):
            validate(WRAPPERS, estimator.clip_x0.spec, WRAPPER_PARTS, f"estimators.{name}.clip_x0")
        _try_estimator(estimator, trial, f"estimators.{name}")


def _try_estimator(estimator: EstimatorConfig, trial: Trial, key: str) -> None:
    """Try an estimator's components that are the user's own. Raises UserError, naming a key below ``key``."""
    trial.energy(estimator.guidance.spec, f"{key}.guidance")
    trial.posterior(estimator.posterior.spec, f"{key}.posterior")
    trial.rule(estimator.rule.spec, f"{key}.rule")
    if not isinstance(estimator.clip_x0, bool):
        trial.wrapper(estimator.clip_x0.spec, {"low": -1.0, "high": 1.0}, f"{key}.clip_x0")


def _check_guidance(estimator: EstimatorConfig, key: str) -> None:
    """Raise UserError for an estimate of E_t that does not exist, or an objective that brings no network."""
    spec = estimator.guidance.spec
    found = check_energy(spec, UNCALIBRATED_PARTS, key)
    if is_trained(spec.name, key) and not isinstance(found, BringsNetwork):
        raise UserError(
            f"'{spec.name}' trains a network, and the library has none for energies of images; take a closed form, or an "
            "objective that brings its network: a class with the methods network and timed_energy",
            key=key,
        )


def make_schedule(config: ImagesConfig) -> Diffusers:
    """Return the forward process of the recipe's scheduler. Raises UserError, naming ``scheduler``, also for one that cannot be
    guided.
    """
    try:
        schedule = Diffusers(config.scheduler.name, config.scheduler.spec.settings)
        check_guidable(schedule.scheduler)
    except UserError as error:
        raise UserError(str(error), key="scheduler") from None
    return schedule


class ImagesModel:
    """The UNet, classifiers and posterior moments of one run."""

    def __init__(self, config: ImagesConfig, images: ImageSet, device: torch.device) -> None:
        from egd.experiments.images.unet import make_network

        self.config, self.device = config, device
        self.schedule = make_schedule(config)
        self.count, self.digest = len(images), images.digest()
        split = torch.Generator().manual_seed(seed_of(config.seed, "split"))
        train, test = images.split(1 - config.test_share, split)
        for_guide, for_judge = train.split(0.5, split)
        self._check_images(images, {"the classifier": for_guide, "the judge": for_judge, "the test": test})
        self.train, self.test = train.to(device), test.to(device)
        channels, size = images.images.shape[1], images.images.shape[-1]
        u = config.unet
        network = self._fresh("unet", lambda: make_network(u, channels, size, self.schedule))
        self.unet_fit = Fit(network, lr=u.lr, steps=u.steps, decay=u.decay, ema=u.ema)
        self.energies: dict[EnergyKey, nn.Module] = {}
        self.classifiers: dict[str, ClassifierLearner] = {}
        if images.labels is not None:
            sets = {"classifier": for_guide, "judge": for_judge}
            self.classifiers = {name: self._classifier(name, part.to(device)) for name, part in sets.items()}
        self._try_components()
        clips = sorted({bool(e.clip_x0) for e in config.estimators.values()})
        denoisers = {clip_key(clip): partial(self._denoiser, clip) for clip in clips}
        per_time = config.calibration.model_dump()
        self.calibration = Calibration(denoisers, self.schedule, self.sample_data, **per_time)

    def _fresh(self, name: str, make: Callable[[], M]) -> M:
        """Make a network whose initial weights depend on the run's seed and its own name alone."""
        return fresh(self.config.seed, f"init/{name}", make).to(self.device)

    def _generator(self, name: str) -> torch.Generator:
        return torch.Generator(self.device).manual_seed(seed_of(self.config.seed, name))

    def _classifier(self, name: str, images: ImageSet) -> ClassifierLearner:
        c = self.config.classifier
        module = self._fresh(name, lambda: Classifier(images.images.shape[1], len(images.classes), c.width))
        fit = Fit(module, lr=c.lr, steps=c.steps, decay=True)
        return ClassifierLearner(fit, images, batch=c.batch, noise=c.noise)

    def _check_images(self, images: ImageSet, parts: Mapping[str, ImageSet]) -> None:
        """Raise UserError for too few images, and for classes that a target needs and that a part of the images lacks."""
        for name, part in parts.items():
            if not len(part):
                raise UserError(f"{len(images)} images leave none for {name}; use more, or another test_share", key="data")
        for name, target in self.config.targets.items():
            wanted = wanted_parts(IMAGE_ENERGIES, target.energy.spec, {"classifier"}, f"targets.{name}.energy")
            if wanted and images.labels is None:
                raise UserError(
                    "needs a classifier, and these images have no classes: put them in one sub-folder a class, or set the "
                    "target to null",
                    key=f"targets.{name}.energy",
                )
            if wanted:
                _check_classes(parts, f"targets.{name}.energy")
            label = target.energy.spec.settings.get("label")
            if label is not None and not 0 <= label < len(images.classes):
                last = len(images.classes) - 1
                raise UserError(f"label {label} is not one of 0 to {last}", key=f"targets.{name}.energy.label")

    def _try_components(self) -> None:
        """Raise UserError for a component that fails on a few images or on noise of their shape, before anything is trained."""
        parts = {"classifier": self.classifiers["classifier"].fit.model} if self.classifiers else {}
        for name, target in self.config.targets.items():
            key = f"targets.{name}.energy"
            c = make_context(self.test, 2)
            x = self.train.images[torch.arange(2) % len(self.train)].clone().requires_grad_()
            own = answering(target.energy.name, key, f"two training images, {tuple(x.shape)}")
            try:
                with own if names_code(target.energy.spec) else nullcontext():
                    energy: Energy = build(IMAGE_ENERGIES, target.energy.spec, parts, key)
                    values = energy_values(energy, x, c)
            except ValueError as error:
                raise UserError(str(error), key=key) from None
            if values.isnan().any():
                raise UserError(f"{name_of(energy)} gives nan for training images; give numbers", key=key)
        context = {name: values.cpu() for name, values in make_context(self.test, 2).items()}
        trial = Trial(tuple(self.train.images.shape[1:]), self.schedule, context)
        for name, estimator in self.config.estimators.items():
            _try_estimator(estimator, trial, f"estimators.{name}")

    # -- training ------------------------------------------------------------------------------------------------

    def phases(self) -> Iterator[Phase]:
        """Yield the phases: UNet, classifiers where there are classes, calibration, and one for each trained energy. The last
        are made once the calibration is trained, on which objectives may depend.
        """
        c = self.config
        unet = DenoiserLearner(
            self.unet_fit, self.schedule, self.sample_data, batch=c.unet.batch, prediction=self.schedule.prediction
        )
        yield Phase("unet", c.unet.steps, unet)
        for name, learner in self.classifiers.items():
            yield Phase(name, c.classifier.steps, learner)
        yield Phase("calibration", 1, self.calibration)
        yield from [self._energy_phase(trained) for trained in trained_energies(c)]

    def _energy_phase(self, trained: EnergyKey) -> Phase:
        e, key = self.config.energy_network, f"estimators.{trained.estimator}"
        estimator = self.config.estimators[trained.estimator]
        parts = {
            "energy": self.energy(trained.target),
            "beta": trained.beta,
            "denoiser": self.pipeline.denoiser(clip_x0=estimator.bound),
            "schedule": self.schedule,
            "posterior": self.posterior(estimator, f"{key}.posterior"),
            "support": self.support(self._generator(f"{trained.phase}/support")),
        }
        objective = build(OBJECTIVES, estimator.guidance.spec, parts, f"{key}.guidance")
        x, c = self.sample_with_contexts(1, torch.Generator(self.device).manual_seed(0))
        entries = sum(values.shape[1] for values in flat_context(c))
        network = self._fresh(trained.phase, lambda: ObjectiveNetwork(objective, tuple(x.shape[1:]), entries))
        self.energies[trained] = network
        fit = Fit(network, lr=e.lr, steps=e.steps, decay=e.decay)
        learner = EnergyLearner(fit, self.schedule, self.sample_with_contexts, objective, batch=e.batch)
        return Phase(trained.phase, e.steps, learner)

    def sample_data(self, n: int, generator: torch.Generator) -> tuple[Tensor, Context]:
        """Draw n training images, without a context."""
        return self.train.draw(n, generator).images, None

    def sample_with_contexts(self, n: int, generator: torch.Generator) -> tuple[Tensor, Context]:
        """Draw n training images, and independent contexts: the labels and the pixels of n others."""
        images, others = self.train.draw(n, generator).images, self.train.draw(n, generator)
        return images, {"image": others.images, **({} if others.labels is None else {"label": others.labels})}

    # -- sampling ------------------------------------------------------------------------------------------------

    @property
    def judge(self) -> nn.Module | None:
        """The classifier that no energy uses; None where the images have no classes."""
        return self.classifiers["judge"].fit.model if self.classifiers else None

    @cached_property
    def pipeline(self) -> Any:
        """The trained UNet with its scheduler, an ``EnergyGuidedPipeline``."""
        from egd.experiments.images.unet import UNetNetwork, make_pipeline

        network = self.unet_fit.model
        assert isinstance(network, UNetNetwork)
        return make_pipeline(network.requires_grad_(False))

    def _denoiser(self, clip: bool) -> Denoiser:
        denoiser: Denoiser = self.pipeline.denoiser(clip_x0=clip)
        return denoiser

    def energy(self, target: str) -> Energy:
        """Build a target's energy of images."""
        parts = {"classifier": self.classifiers["classifier"].fit.model.requires_grad_(False)} if self.classifiers else {}
        energy: Energy = build(IMAGE_ENERGIES, self.config.targets[target].energy.spec, parts, f"targets.{target}.energy")
        return energy

    def posterior(self, estimator: EstimatorConfig, key: str) -> Posterior:
        """Build an estimator's posterior, from the calibration with or without clipping."""
        denoiser: Denoiser = self.pipeline.denoiser(clip_x0=estimator.bound)
        moments = self.calibration.moments[clip_key(estimator.clip_x0)]
        parts = {"denoiser": denoiser, "moments": moments, "schedule": self.schedule}
        posterior: Posterior = build(POSTERIORS, estimator.posterior.spec, parts, key)
        return posterior

    def support(self, generator: torch.Generator) -> Support:
        """Return a function that draws training images as samples of q, the same ones for every row."""

        def support(c: Context, k: int) -> Tensor:
            drawn = self.train.draw(k, generator).images[None]
            rows = len(next(iter(c.values()))) if isinstance(c, Mapping) else 1
            return drawn.expand(rows, *drawn.shape[1:])

        return support

    def sample(
        self, name: str | None, target: str, beta: float, c: Context, n: int, generator: torch.Generator, omega: float | None
    ) -> Tensor:
        """Draw n images (n, C, S, S) in [-1, 1], guided to a target by the estimator ``name``; unguided where it is None."""
        shared = {"batch_size": n, "num_inference_steps": self.config.steps, "output_type": "latent", "generator": generator}
        if name is None:
            return shown(self.pipeline(**shared).images)
        estimator = self.config.estimators[name]
        network = self.energies.get(EnergyKey(name, target, beta))
        images = self.pipeline(
            energy=self.energy(target),
            beta=beta,
            context=c,
            guidance=estimator.guidance.model_dump() if network is None else lambda: at_unit_scale(network, self.schedule),
            posterior=self.posterior(estimator, f"estimators.{name}.posterior"),
            support=self.support(self._generator("support")),
            rule=estimator.rule.model_dump(),
            omega=estimator.omega if omega is None else omega,
            clip_x0=estimator.bound,
            **shared,
        ).images
        return shown(images)


def clip_key(clip_x0: object) -> str:
    """Return the name of the moments of a denoiser with or without clipping of x_0."""
    return f"clip{int(bool(clip_x0))}"


def shown(latents: Tensor) -> Tensor:
    """Clip to [-1, 1], as an image would be; values that are not finite stay, so that they are counted."""
    return torch.where(latents.isfinite(), 2 * (latents / 2 + 0.5).clamp(0, 1) - 1, latents)


def _check_classes(parts: Mapping[str, ImageSet], key: str) -> None:
    """Raise UserError for a class that a part of the images lacks, where it could not be learned or tested."""
    for name, part in parts.items():
        assert part.labels is not None
        lacking = set(range(len(part.classes))) - set(part.labels.tolist())
        if lacking:
            shown = ", ".join(f"'{part.classes[i]}'" for i in sorted(lacking)[:5])
            raise UserError(
                f"needs a classifier, and of {shown} there is no image for {name}: use more, or set the target to null", key=key
            )
