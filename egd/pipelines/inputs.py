"""Checks of a pipeline's arguments before anything is sampled. They raise ValueError naming the argument."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from egd.contracts import energy_values, name_of
from egd.tensors import map_context
from egd.types import Context, Energy, Support

OUTPUTS = ("pil", "np", "pt", "latent")
ROUNDING = 1e-3
"""Tolerance of the range [-1, 1] of images."""


def check_images(name: str, images: Tensor, event: tuple[int, ...], *, bounded: bool = True) -> None:
    """Raise ValueError unless images (..., C, H, W) are floating, finite, shaped like ``event``, and in [-1, 1] if ``bounded``.

    Warns where all bounded images lie in [0, 1], which is another scale.
    """
    scale = "images in [-1, 1]" if bounded else "images"
    if not isinstance(images, Tensor) or not images.is_floating_point():
        kind = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise ValueError(f"{name}: expected floating {scale}, got {kind}; for bytes write images / 127.5 - 1")
    if images.shape[-3:] != event or not images.numel():
        raise ValueError(f"{name}: expected (..., {', '.join(map(str, event))}), got {tuple(images.shape)}")
    low, high = (float(v) for v in images.aminmax())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"{name}: expected finite {scale}, got values that are not numbers or infinite")
    if bounded and (low < -1 - ROUNDING or high > 1 + ROUNDING):
        raise ValueError(f"{name}: expected {scale}, got values from {low:.4g} to {high:.4g}; scale them, or say clip_x0=False")
    if bounded and low >= 0 and high > 0:
        warnings.warn(f"{name}: expected {scale}, and no value is below 0; from [0, 1] write 2 * images - 1", stacklevel=3)


def check_energy(energy: Energy, shape: tuple[int, ...], c: Context, device: torch.device, dtype: torch.dtype) -> None:
    """Raise ValueError unless an energy gives one finite number for each of two images of noise.

    They take the first two rows of a batch (B, C, H, W). Whether the energy has a gradient is not checked: not every guidance
    needs one.
    """
    x0 = torch.rand(min(2, shape[0]), *shape[1:], generator=torch.Generator().manual_seed(0)).mul(2).sub(1).to(device, dtype)
    with torch.no_grad():
        values = energy_values(energy, x0, map_context(lambda v: v[: len(x0)], c))
    if not values.isfinite().all():
        raise ValueError(f"energy: {name_of(energy)} gives {values.tolist()} for images in [-1, 1]; give finite numbers")


def checked_support(support: Support, event: tuple[int, ...], *, bounded: bool) -> Support:
    """Return the support with a check of the images that it draws."""

    def checked(c: Context, k: int) -> Tensor:
        images = support(c, k)
        check_images("support", images, event, bounded=bounded)
        return images

    return checked


def check_numbers(*, batch_size: int, num_inference_steps: int, beta: float, omega: float, eta: float) -> None:
    """Raise ValueError for counts below 1, beta or omega that are not finite, and eta outside [0, 1]."""
    for name, count in {"batch_size": batch_size, "num_inference_steps": num_inference_steps}.items():
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise ValueError(f"{name} is a whole number from 1; got {count!r}")
    for name, number in {"beta": beta, "omega": omega}.items():
        if not math.isfinite(number):
            raise ValueError(f"{name} is a finite number; got {number}")
    if not 0 <= eta <= 1:
        raise ValueError(f"eta is a number from 0 to 1; got {eta}")


def scale_of(omega: float | None, guidance_scale: float | None) -> float:
    """Return the guidance scale under either of its names, 1 if neither is given. Raises ValueError if both are."""
    if omega is not None and guidance_scale is not None:
        raise ValueError(f"omega ({omega}) and guidance_scale ({guidance_scale}) are one thing; give one of them")
    return next((scale for scale in (omega, guidance_scale) if scale is not None), 1.0)


def check_rows(n: int, generator: Any, labels: Tensor | None, context: Mapping[str, Tensor] | None) -> None:
    """Raise ValueError for a generator, labels or context that do not have one entry for each of the n images."""
    rows = {} if labels is None else {"class_labels": labels}
    rows |= {f"context['{name}']": value for name, value in (context or {}).items()}
    for name, value in rows.items():
        if not isinstance(value, Tensor) or value.ndim < 1 or len(value) != n:
            found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"{name} is a tensor with one row for each of {n} images; got {found}")
    generators: Any = generator if isinstance(generator, list) else [generator]
    if isinstance(generator, list) and len(generator) != n:
        raise ValueError(f"generator is one, or a list of one for each of {n} images; got {len(generator)}")
    if any(g is not None and not isinstance(g, torch.Generator) for g in generators):
        raise ValueError(f"generator is a torch.Generator, or a list of them; got {generator!r}")


def replaced(image: Tensor, returned: Mapping[str, Tensor] | None) -> Tensor:
    """Return the image that a callback returned, or the given one if it returned none. Raises ValueError for anything else."""
    if returned is None:
        return image
    if not isinstance(returned, Mapping) or set(returned) - {"image"}:
        kind = sorted(returned) if isinstance(returned, Mapping) else type(returned).__name__
        raise ValueError(f"callback_on_step_end returns None or {{'image': x}}; got {kind}")
    new = returned.get("image", image)
    if not isinstance(new, Tensor) or new.shape != image.shape:
        found = tuple(new.shape) if isinstance(new, Tensor) else type(new).__name__
        raise ValueError(f"callback_on_step_end: 'image' is of shape {tuple(image.shape)}; got {found}")
    return new


def check_output_type(output_type: str) -> None:
    """Raise ValueError for an output type that the pipeline does not have."""
    if output_type not in OUTPUTS:
        raise ValueError(f"output_type is one of {', '.join(OUTPUTS)}; got {output_type!r}")


def warn_of_dropout(network: nn.Module) -> None:
    """Warn of a network that draws dropout anew at every call: it is no denoiser, and its gradient is of another function."""
    if network.training and any(isinstance(m, nn.Dropout) and m.p > 0 for m in network.modules()):
        warnings.warn("the UNet is in training mode, and has dropout; call unet.eval()", stacklevel=3)
