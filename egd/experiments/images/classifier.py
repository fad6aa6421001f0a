"""A small classifier of clean images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from egd.experiments.images.data import ImageSet
from egd.training.learners import Fit, Metrics


class Classifier(nn.Module):
    """A smooth (SiLU) network x_0 (B, C, H, W) -> logits (B, classes): two convolutions, pooling to 4 x 4, one dense layer."""

    def __init__(self, channels: int, classes: int, width: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.AdaptiveAvgPool2d(4),
        )
        self.last = nn.Linear(2 * width * 16, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits: (B, C, H, W) -> (B, classes)."""
        out: Tensor = self.last(self.features(x).flatten(1))
        return out


class ClassifierLearner:
    """A learner that minimises the cross-entropy on images with a little noise."""

    def __init__(self, fit: Fit, images: ImageSet, *, batch: int, noise: float) -> None:
        self.fit, self.images, self.batch, self.noise = fit, images, batch, noise
        self.state, self.load = fit.state, fit.load

    def update(self, generator: torch.Generator) -> Metrics:
        """Take one step, and return the loss and the accuracy."""
        drawn = self.images.draw(self.batch, generator)
        assert drawn.labels is not None
        noise = torch.randn(drawn.images.shape, generator=generator, device=drawn.images.device)
        logits = self.fit.module(drawn.images + self.noise * noise)
        loss = nn.functional.cross_entropy(logits, drawn.labels)
        self.fit.descend(loss)
        return {"loss": loss.detach(), "accuracy": (logits.argmax(1) == drawn.labels).float().mean()}


@torch.no_grad()
def accuracy(classifier: nn.Module, images: ImageSet) -> float:
    """Compute the share of images that are classified correctly."""
    return float((classifier(images.images).argmax(1) == images.labels).double().mean())
