"""Training: learners, times, batches of runs, and the precision of a step."""

from egd.training.learners import DenoiserLearner, EnergyLearner, Fit, Learner, Metrics, StepLearner, train

__all__ = ["DenoiserLearner", "EnergyLearner", "Fit", "Learner", "Metrics", "StepLearner", "train"]
