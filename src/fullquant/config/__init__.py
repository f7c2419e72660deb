"""Configuration: the YAML sections of PaddleSlim's auto-compression as frozen dataclasses that check themselves."""

from fullquant.config.config import Config, load_config
from fullquant.config.distillation import Distillation, DistillationTerm
from fullquant.config.global_section import EMBEDDED, Augment, Global
from fullquant.config.learning_rate import LearningRate, LearningRateSchedule
from fullquant.config.optimizer import OptimizerBuilder, OptimizerSettings
from fullquant.config.quantization import (
    Calibration,
    ObserverSettings,
    QuantAware,
    QuantizationSettings,
    QuantPost,
    TargetName,
    target_of_hardware,
)
from fullquant.config.training import TrainConfig

__all__ = [
    "EMBEDDED",
    "Augment",
    "Calibration",
    "Config",
    "Distillation",
    "DistillationTerm",
    "Global",
    "LearningRate",
    "LearningRateSchedule",
    "ObserverSettings",
    "OptimizerBuilder",
    "OptimizerSettings",
    "QuantAware",
    "QuantPost",
    "QuantizationSettings",
    "TargetName",
    "TrainConfig",
    "load_config",
    "target_of_hardware",
]
