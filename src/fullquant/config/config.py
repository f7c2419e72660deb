"""The whole configuration, and where it comes from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from fullquant.config.distillation import Distillation
from fullquant.config.document import read_document
from fullquant.config.global_section import Global
from fullquant.config.quantization import QuantAware, QuantizationSettings, QuantPost, TargetName
from fullquant.config.settings import Settings, nearest, require
from fullquant.config.training import TrainConfig
from fullquant.errors import ConfigError

_SECTIONS: Mapping[str, type[Settings]] = {
    "Global": Global,
    "Distillation": Distillation,
    "QuantAware": QuantAware,
    "QuantPost": QuantPost,
    "TrainConfig": TrainConfig,
}
_GLOBAL_KEYS = frozenset(Global.keys())
# The name that PaddleSlim had for QuantAware before 2.4.
_OLD_NAMES: Mapping[str, str] = {"Quantization": "QuantAware"}

_NO_PRUNING = "fullquant does not prune; prune first and quantize the model that results"
_REFUSED: Mapping[str, str] = {
    "ChannelPrune": _NO_PRUNING,
    "ASPPrune": _NO_PRUNING,
    "TransformerPrune": _NO_PRUNING,
    "UnstructurePrune": _NO_PRUNING,
    "Prune": _NO_PRUNING,
    "MultiTeacherDistillation": "there is one teacher; use Distillation",
    "HyperParameterOptimization": "there is no search; name the algorithm in QuantPost.algo, or use QuantAware",
}


@dataclass(frozen=True)
class Config:
    """A configuration. The sections that are present choose the strategy.

    global_section: never absent, a missing section has the defaults. quant_aware, quant_post: at most one is given;
    neither is enough to evaluate a model. source: the file it came from, None for a mapping.
    """

    global_section: Global = field(default_factory=Global)
    distillation: Distillation = field(default_factory=Distillation)
    quant_aware: QuantAware | None = None
    quant_post: QuantPost | None = None
    train: TrainConfig = field(default_factory=TrainConfig)
    source: str | None = None

    def __post_init__(self) -> None:
        require(
            self.quant_aware is None or self.quant_post is None,
            "QuantAware and QuantPost are both given; QuantAware calibrates by itself before it trains, so keep one",
        )

    @property
    def strategy(self) -> Literal["qat", "ptq"]:
        """qat for QuantAware, ptq for QuantPost. ConfigError where neither is given."""
        return "qat" if isinstance(self.quantization, QuantAware) else "ptq"

    @property
    def quantization(self) -> QuantAware | QuantPost:
        """The section that says what becomes int8. ConfigError where neither is given."""
        section = self.quant_aware or self.quant_post
        if section is None:
            raise ConfigError(
                f"{self.source or 'configuration'}: nothing says how to quantize; add a section QuantAware or QuantPost"
            )
        return section

    def target(self, deploy_hardware: str | None = None) -> TargetName:
        """The target of the strategy's section; see QuantizationSettings.target_for."""
        section: QuantizationSettings = self.quantization
        return section.target_for(deploy_hardware)


def load_config(source: str | Path | Mapping[str, Any]) -> Config:
    """A configuration from a YAML file or a mapping of sections.

    Raises ConfigError in one line with file, section, key and the remedy: unknown or duplicate keys, wrong types,
    values that contradict each other, sections that fullquant has no counterpart for.
    """
    if isinstance(source, Mapping):
        return _from_document(source, None)
    document = read_document(source)
    try:
        return _from_document(document, str(source))
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None


def _from_document(document: Mapping[str, Any], source: str | None) -> Config:
    if document and all(key in _GLOBAL_KEYS for key in document):
        document = {"Global": document}  # a file without sections, such as the eval.yaml of PaddleSlim 2.4
    sections: dict[str, Any] = {}
    for key in document:  # before the contents of any section: what they say may hang on it
        if key in _REFUSED:
            raise ConfigError(f"section {key} is not available: {_REFUSED[key]}")
    for key, value in document.items():
        name = _OLD_NAMES.get(key, key)
        if name not in _SECTIONS:
            raise ConfigError(f"unknown section {key!r}{_hint(key)}")
        if name in sections:
            raise ConfigError(f"section {key}: {name} is given as well, which is the same; keep one")
        sections[name] = _SECTIONS[name].from_mapping(value)
    if "Distillation" in sections and "QuantAware" not in sections:
        raise ConfigError("section Distillation needs QuantAware; distillation alone would train a float model")
    return Config(
        global_section=sections.get("Global", Global()),
        distillation=sections.get("Distillation", Distillation()),
        quant_aware=sections.get("QuantAware"),
        quant_post=sections.get("QuantPost"),
        train=sections.get("TrainConfig", TrainConfig()),
        source=source,
    )


def _hint(key: object) -> str:
    """Where an unknown top-level key belongs: a key of a section that lost its indentation, or a near section."""
    homes = [name for name, section in _SECTIONS.items() if key in set(section.keys())]
    if homes:
        return f"; it is a key of {' and '.join(homes)}: indent it there"
    return nearest(key, [*_SECTIONS, *_OLD_NAMES])
