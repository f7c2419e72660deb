"""Sections QuantAware and QuantPost: what becomes int8, on which grid, and how the first scales are found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal, get_args

from fullquant.config.settings import Fixed, Settings, nearest, require
from fullquant.errors import ConfigError

TargetName = Literal[
    "paddle_lite", "verisilicon_timvx", "paddle_inference", "tensorrt", "onnxruntime", "openvino", "rknn"
]  # fmt: skip
ObserverName = Literal["auto", "fisher", "min_max", "moving_average", "percentile", "mse"]
ScaleGrid = Literal["short", "power_of_two", "free"]
WeightRounding = Literal["compensated", "nearest"]
WeightQuantizeType = Literal["channel_wise_abs_max", "abs_max", "range_abs_max", "moving_average_abs_max"]
ActivationQuantizeType = Literal["moving_average_abs_max", "range_abs_max", "abs_max"]

# deploy_hardware of PaddleSlim's AutoCompression ("gpu", "cpu" and its latency tables, which are ARM chips) -> target.
HARDWARE_TARGETS: Mapping[str, TargetName] = {
    "gpu": "tensorrt",
    "cpu": "paddle_inference",
    "SD625": "paddle_lite",
    "SD710": "paddle_lite",
    "RK3288": "paddle_lite",
}

# Operator types that PaddlePaddle's quantization passes know: SUPPORT_QUANTIZATION_OP_DICT of its quant_config.py.
PADDLE_OP_TYPES = frozenset({
    "conv2d", "depthwise_conv2d", "conv2d_transpose", "mul", "matmul", "matmul_v2", "pool2d", "elementwise_add",
    "concat", "softmax", "argmax", "transpose", "equal", "gather", "greater_equal", "greater_than", "less_equal",
    "less_than", "mean", "not_equal", "reshape", "reshape2", "transpose2", "nearest_interp", "trilinear_interp",
    "slice", "squeeze", "elementwise_sub", "relu", "relu6", "leaky_relu", "prelu", "tanh", "swish", "dropout",
    "batch_norm", "layer_norm", "sigmoid", "elementwise_mul", "elementwise_pow", "hard_swish", "hard_sigmoid", "gru",
    "lstm", "pad2d", "pad3d", "flatten", "flatten2", "unsqueeze2", "flatten_contiguous_range", "split", "squeeze2",
    "nearest_interp_v2", "bilinear_interp", "bilinear_interp_v2", "fill_constant_batch_size_like", "arg_max", "abs",
    "assign", "cast", "clip", "box_coder", "crop", "cumsum", "expand_v2", "fill_any_like", "fill_constant", "gelu",
    "instance_norm", "lookup_table", "lookup_table_v2", "norm", "p_norm", "pow", "reduce_mean", "stack", "top_k_v2",
    "logical_and", "logical_not", "meshgrid", "roi_align", "strided_slice", "where", "grid_sampler", "tile",
    "group_norm", "reduce_sum", "square", "softplus", "shuffle_channel", "reduce_max", "scale",
})  # fmt: skip
TENSORRT_OP_TYPES = ("mul", "conv2d", "pool2d", "depthwise_conv2d", "elementwise_add", "leaky_relu")

_INT8 = Fixed((8,), "the integer files hold int8 and the kernels of every target compute in int8")


@dataclass(frozen=True)
class ObserverSettings:
    """How a scale is found from observed values.

    images: how many training images are looked at, None for all.
    percentile: the share of |x| that is kept, for `percentile`.
    moving_rate: share of the old value at each batch, for `moving_average`.
    first: the candidate of `auto` that comes before all others.
    compensate: whether weights are rounded for their layer's output, not each to the nearest integer.
    """

    name: ObserverName
    images: int | None
    percentile: float
    moving_rate: float
    first: ObserverName = "min_max"
    compensate: bool = True

    @property
    def candidates(self) -> tuple[ObserverName, ...]:
        """The observers to try: the one that is named, or for `auto` all, each once."""
        if self.name != "auto":
            return (self.name,)
        return tuple(dict.fromkeys((self.first, "fisher", "moving_average", "min_max", "percentile", "mse")))


@dataclass(frozen=True)
class Calibration(Settings):
    """QuantAware.calibration (ours): the scales that training starts from.

    observer: auto tries the one that activation_quantize_type stands for and all others, and keeps the one whose model
        is nearest to the float one on the calibration images (KL divergence); null takes that of
        activation_quantize_type without trying others.
    calibration_images: how many training images are looked at.
    percentile: the share of |x| that the observer `percentile` keeps.
    """

    SECTION: ClassVar[str] = "QuantAware.calibration"
    observer: ObserverName | None = "auto"
    calibration_images: int = 512
    percentile: float = 0.9999

    def check(self) -> None:
        require(
            self.calibration_images > 0, f"{self.SECTION}.calibration_images: {self.calibration_images} must be > 0"
        )
        require(
            0.5 < self.percentile <= 1,
            f"{self.SECTION}.percentile: {self.percentile} must be a share, above 0.5, at most 1",
        )


@dataclass(frozen=True, kw_only=True)
class QuantizationSettings(Settings):
    """What QuantAware and QuantPost have in common.

    is_full_quantize: every tensor is int8; its default is true here, in PaddleSlim false. false quantizes the operator
    types of quantize_op_types only.
    """

    quantize_op_types: tuple[str, ...] = ("conv2d", "depthwise_conv2d", "mul", "matmul", "matmul_v2")
    is_full_quantize: bool = True
    weight_quantize_type: WeightQuantizeType = "channel_wise_abs_max"
    onnx_format: bool = True
    not_quant_pattern: tuple[str, ...] = ("skip_quant",)
    target: TargetName | None = None
    reduce_range: bool = False
    scale_grid: ScaleGrid = "short"
    weight_rounding: WeightRounding = "compensated"

    def check(self) -> None:
        self.target_for()
        if not all(self.not_quant_pattern):
            raise ConfigError(f"{self.SECTION}.not_quant_pattern: '' is part of every name; write [] for none")
        for name in self.quantize_op_types:
            # Names of ONNX operators (Conv) are for models that were read from ONNX.
            if name not in PADDLE_OP_TYPES and not name[:1].isupper():
                raise ConfigError(f"{self.SECTION}.quantize_op_types: unknown operator {name!r}{_nearest_op(name)}")

    @property
    def op_types(self) -> tuple[str, ...] | None:
        """The operator types to quantize; None where everything is."""
        return None if self.is_full_quantize else self.quantize_op_types

    @property
    def weight_granularity(self) -> Literal["per_channel", "per_tensor"]:
        """A weight stands still while it is observed: every type but the channel-wise one is its abs-max per tensor."""
        return "per_channel" if self.weight_quantize_type == "channel_wise_abs_max" else "per_tensor"

    def target_for(self, deploy_hardware: str | None = None) -> TargetName:
        """The target: as written, else that of deploy_hardware (also a target's own name), else paddle_lite.

        ConfigError for reduce_range with paddle_inference: its weights are rounded again, to 127 in each channel.
        """
        target = self.target or target_of_hardware(deploy_hardware)
        require(
            not (self.reduce_range and target == "paddle_inference"),
            f"{self.SECTION}.reduce_range: means nothing for target paddle_inference, whose kernels spread "
            "the weights of each channel over [-127, 127] again (docs/decisions/0024); remove it or change target",
        )
        return target


def _nearest_op(name: str) -> str:
    text = nearest(name, PADDLE_OP_TYPES)
    return text if "did you mean" in text else "; see docs/configuration.md for the list"


def target_of_hardware(deploy_hardware: str | None) -> TargetName:
    """The target that AutoCompression's deploy_hardware stands for; None is paddle_lite. ConfigError if unknown."""
    if deploy_hardware is None:
        return "paddle_lite"
    for name in get_args(TargetName):
        if name == deploy_hardware:
            return name  # type: ignore[no-any-return]
    if deploy_hardware not in HARDWARE_TARGETS:
        known = [*HARDWARE_TARGETS, *get_args(TargetName)]
        raise ConfigError(f"deploy_hardware: unknown hardware {deploy_hardware!r}; known: {', '.join(known)}")
    return HARDWARE_TARGETS[deploy_hardware]


_ACTIVATION_OBSERVERS: Mapping[ActivationQuantizeType, ObserverName] = {
    "moving_average_abs_max": "moving_average",
    "range_abs_max": "min_max",
    "abs_max": "min_max",
}


@dataclass(frozen=True, kw_only=True)
class QuantAware(QuantizationSettings):
    """Quantization-aware training: calibrate, then train weights and steps against the teacher."""

    SECTION: ClassVar[str] = "QuantAware"
    FIXED: ClassVar[Mapping[str, Fixed]] = {
        "weight_bits": _INT8,
        "activation_bits": _INT8,
        "dtype": Fixed(("int8",), "PaddleSlim knows no other either"),
        "window_size": Fixed((10000,), "range_abs_max sees all of QuantAware.calibration.calibration_images; set that"),
    }
    quantize_op_types: tuple[str, ...] = (
        "conv2d",
        "depthwise_conv2d",
        "conv2d_transpose",
        "mul",
        "matmul",
        "matmul_v2",
    )
    use_pact: bool = False
    activation_quantize_type: ActivationQuantizeType = "moving_average_abs_max"
    moving_rate: float = 0.9
    for_tensorrt: bool = False
    calibration: Calibration = field(default_factory=Calibration)
    learn_step_size: bool = True
    scale_learning_rate: float | None = None

    def check(self) -> None:
        super().check()
        require(0 < self.moving_rate < 1, f"QuantAware.moving_rate: {self.moving_rate} must be between 0 and 1")
        require(
            self.scale_learning_rate is None or 0 < self.scale_learning_rate <= 1,
            f"QuantAware.scale_learning_rate: {self.scale_learning_rate} must be above 0 and at most 1 "
            "(learn_step_size: false keeps the scales)",
        )
        if self.for_tensorrt:
            require(
                self.target in (None, "tensorrt"),
                f"QuantAware.for_tensorrt: contradicts target {self.target}; remove one of them",
            )
            require(
                self.weight_quantize_type == "channel_wise_abs_max",
                "QuantAware.for_tensorrt: TensorRT needs weight_quantize_type channel_wise_abs_max",
            )
            require(
                self.activation_quantize_type != "abs_max",
                "QuantAware.for_tensorrt: activation_quantize_type must be moving_average_abs_max or range_abs_max",
            )

    @property
    def op_types(self) -> tuple[str, ...] | None:
        """As for all; for_tensorrt has a list of its own, which beats the other two keys as in PaddleSlim."""
        return TENSORRT_OP_TYPES if self.for_tensorrt else super().op_types

    def target_for(self, deploy_hardware: str | None = None) -> TargetName:
        """As for all; for_tensorrt is the target tensorrt."""
        return "tensorrt" if self.for_tensorrt else super().target_for(deploy_hardware)

    @property
    def observer(self) -> ObserverSettings:
        """`calibration`, with the observer of activation_quantize_type where it names none, and first for `auto`."""
        first = _ACTIVATION_OBSERVERS[self.activation_quantize_type]
        chosen = self.calibration
        return ObserverSettings(
            chosen.observer or first, chosen.calibration_images, chosen.percentile, self.moving_rate, first,
            self.weight_rounding == "compensated",
        )  # fmt: skip


_NO_RECONSTRUCTION = (
    "it belongs to the reconstruction of recon_level; fullquant trains the whole model instead: use QuantAware"
)
_ALGORITHMS: Mapping[str, ObserverName] = {
    "auto": "auto",
    "fisher": "fisher",
    "hist": "percentile",
    "mse": "mse",
    "abs_max": "min_max",
    "min_max": "min_max",
}


@dataclass(frozen=True, kw_only=True)
class QuantPost(QuantizationSettings):
    """Post-training quantization: scales from observed images, no training."""

    SECTION: ClassVar[str] = "QuantPost"
    ALIASES: ClassVar[Mapping[str, str]] = {"bias_correct": "bias_correction"}  # the tutorial's spelling
    FIXED: ClassVar[Mapping[str, Fixed]] = {
        "weight_bits": _INT8,
        "activation_bits": _INT8,
        "recon_level": Fixed((None,), "there is no reconstruction by layers; QuantAware trains the whole model"),
        "epochs": Fixed((20,), _NO_RECONSTRUCTION),
        "lr": Fixed((0.1,), _NO_RECONSTRUCTION),
        "regions": Fixed((None,), _NO_RECONSTRUCTION),
        "region_weights_names": Fixed((None,), _NO_RECONSTRUCTION),
        "skip_tensor_list": Fixed((None,), _NO_RECONSTRUCTION + "; not_quant_pattern keeps operators float"),
        "simulate_activation_quant": Fixed((False,), _NO_RECONSTRUCTION),
        "activation_quantize_type": Fixed(
            ("range_abs_max", "moving_average_abs_max", "abs_max"),
            "after calibration each of these is one constant scale per tensor; algo says how it is found",
        ),
    }
    batch_size: int = 32
    batch_nums: int | None = None
    algo: Literal["auto", "fisher", "hist", "mse", "abs_max", "min_max"] = "auto"
    hist_percent: float = 0.999
    bias_correction: bool | None = None

    def check(self) -> None:
        super().check()
        require(self.batch_size > 0, f"QuantPost.batch_size: {self.batch_size} must be > 0")
        require(self.batch_nums is None or self.batch_nums > 0, f"QuantPost.batch_nums: {self.batch_nums} must be > 0")
        require(
            0.5 < self.hist_percent <= 1,
            f"QuantPost.hist_percent: {self.hist_percent} must be a share, above 0.5, at most 1",
        )

    @property
    def observer(self) -> ObserverSettings:
        """`algo` on batch_size * batch_nums images, on as many as QuantAware looks at where batch_nums is absent."""
        images = Calibration().calibration_images if self.batch_nums is None else self.batch_size * self.batch_nums
        compensate = self.weight_rounding == "compensated"
        return ObserverSettings(_ALGORITHMS[self.algo], images, self.hist_percent, 0.9, compensate=compensate)

    @property
    def corrects(self) -> bool:
        """Whether channel statistics are corrected: as `bias_correction` says, with `algo: auto` where it says nothing.

        `auto` keeps a correction only where it brings the model nearer to the float one.
        """
        return self.algo == "auto" if self.bias_correction is None else self.bias_correction
