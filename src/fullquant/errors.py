"""Every error that fullquant raises on purpose. One line each: what, where, and the remedy."""

from __future__ import annotations


class FullquantError(Exception):
    """Base of all errors whose cause lies outside fullquant: input files, settings, data, environment."""


class ConfigError(FullquantError):
    """A setting is unknown, has the wrong type, or contradicts another."""


class ModelError(FullquantError):
    """A model file is missing, damaged, or holds something that cannot be read."""


class UnsupportedOperatorError(ModelError):
    """The model holds an operator, or an attribute value of one, that has no rule here."""


class DataError(FullquantError):
    """An image, a list file or a data loader is missing or unusable."""


class PlacementError(FullquantError):
    """A tensor cannot be placed as the target demands."""


class TrainingError(FullquantError):
    """Training cannot go on: a non-finite loss, an unusable checkpoint."""


class ExportError(FullquantError):
    """A model cannot be written in the format asked for, or a file not at all."""


class EngineError(FullquantError):
    """A runtime that was asked for is not installed or refuses the model."""


class AccumulatorOverflowError(EngineError):
    """A sum of the integer reference does not fit into 32 bits."""


class ReportError(FullquantError):
    """A report file is missing, damaged, or of another version."""
