"""What a model must beat, as `benchmarks.model` compares with it. Training logs the same: see `models.baselines`."""

from models.baselines import EIGHT, eight, logistic

__all__ = ["EIGHT", "eight", "logistic"]
