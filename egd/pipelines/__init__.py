"""Pipelines of diffusers with energy guidance."""

from egd.pipelines.guided import EnergyGuidedPipeline

__all__ = ["EnergyGuidedPipeline"]
