"""Pipelines of diffusers whose samples are guided by an energy."""

from egd.pipelines.guided import EnergyGuidedPipeline

__all__ = ["EnergyGuidedPipeline"]
