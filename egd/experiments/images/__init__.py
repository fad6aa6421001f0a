"""Images as a domain: a UNet of ``diffusers`` is trained on a set of images, and guided by energies of images."""

from egd.experiments.images.data import ImageSet, digits, folder
from egd.experiments.images.energies import Brightness, ClassProbability, Inpainting

__all__ = ["Brightness", "ClassProbability", "ImageSet", "Inpainting", "digits", "folder"]
