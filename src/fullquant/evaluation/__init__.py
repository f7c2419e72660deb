"""Accuracy against labels and against the float model, for one engine or several side by side."""

from fullquant.evaluation.accuracy import Accuracy, AccuracyMeter, collect_outputs, evaluate_session
from fullquant.evaluation.compare import ComparisonRow, compare_engines

__all__ = ["Accuracy", "AccuracyMeter", "ComparisonRow", "collect_outputs", "compare_engines", "evaluate_session"]
