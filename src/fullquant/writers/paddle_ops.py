"""ONNX operator -> Paddle operators: one table. Adding an operator means adding a line, and a rule if it needs one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from fullquant.writers import paddle_layers as layers
from fullquant.writers import paddle_more as more
from fullquant.writers import paddle_shapes as shapes
from fullquant.writers.paddle_builder import Attribute
from fullquant.writers.paddle_emitter import Emitter

Rule = Callable[[Emitter], None]

_FLOAT32_MAX = float(np.finfo(np.float32).max)


def unary(kind: str, *floats: tuple[str, str, float], **fixed: Attribute) -> Rule:
    """A rule for X -> Out. floats: (Paddle attribute, ONNX attribute, ONNX default); fixed: constant attributes."""

    def rule(emit: Emitter) -> None:
        attributes = {ours: emit.float_attribute(onnx, default) for ours, onnx, default in floats}
        emit.op(kind, {"X": [emit.read(0)]}, {"Out": [emit.output()]}, **fixed, **attributes)

    return rule


def elementwise(kind: str, *, commutative: bool = False) -> Rule:
    """A rule for two inputs with NumPy's broadcasting, which Paddle's axis -1 means too (shapes aligned at the end).

    A commutative operator gets the operand with more axes first, as Paddle's own layers and Paddle Lite have it.
    """

    def rule(emit: Emitter) -> None:
        if len(emit.node.inputs) != 2:
            raise emit.refuse("only two inputs can be written", "chain nodes of two inputs")
        variables = [emit.read(0), emit.read(1)]
        ranks = [emit.rank(0), emit.rank(1)]
        if ranks[0] is not None and ranks[1] is not None and ranks[0] < ranks[1]:
            variables = variables[::-1] if commutative else variables
        emit.op(kind, {"X": variables[:1], "Y": variables[1:]}, {"Out": [emit.output()]}, axis=-1)

    return rule


def relu(emit: Emitter) -> None:
    """Relu -> relu, or clip for a runtime that gives a relu's output another grid than the file's."""
    if emit.clamps_by_clip:
        emit.op("clip", {"X": [emit.read(0)]}, {"Out": [emit.output()]}, min=0.0, max=_FLOAT32_MAX)
    else:
        emit.op("relu", {"X": [emit.read(0)]}, {"Out": [emit.output()]})


def clip(emit: Emitter) -> None:
    """Clip -> relu6, relu or clip, by its bounds."""
    low, high = (emit.constant(index) for index in (1, 2))
    minimum = -_FLOAT32_MAX if low is None else float(low.reshape(-1)[0])
    maximum = _FLOAT32_MAX if high is None else float(high.reshape(-1)[0])
    inputs, outputs = {"X": [emit.read(0)]}, {"Out": [emit.output()]}
    plain = not emit.clamps_by_clip
    if plain and (minimum, maximum) == (0.0, 6.0):
        emit.op("relu6", inputs, outputs, threshold=6.0)
    elif plain and minimum == 0.0 and maximum >= _FLOAT32_MAX:
        emit.op("relu", inputs, outputs)
    else:
        bounds = [max(-_FLOAT32_MAX, min(_FLOAT32_MAX, bound)) for bound in (minimum, maximum)]
        emit.op("clip", inputs, outputs, min=bounds[0], max=bounds[1])


def softmax(kind: str) -> Rule:
    """A rule for Softmax or LogSoftmax along one axis."""

    def rule(emit: Emitter) -> None:
        emit.op(kind, {"X": [emit.read(0)]}, {"Out": [emit.output()]}, axis=emit.int_attribute("axis", -1))

    return rule


def reduce(kind: str) -> Rule:
    """A rule for Reduce* with constant axes."""

    def rule(emit: Emitter) -> None:
        axes = emit.constant_ints(1) if emit.value(1) is not None else emit.ints_attribute("axes", [])
        if not axes and emit.int_attribute("noop_with_empty_axes", 0):
            emit.op("assign", {"X": [emit.read(0)]}, {"Out": [emit.output()]})
            return
        rank = emit.rank(0)
        if not axes and rank is None:
            raise emit.refuse("no axes and an input of unknown rank", "run shape inference")
        emit.op(
            kind,
            {"X": [emit.read(0)]},
            {"Out": [emit.output()]},
            dim=axes or list(range(rank or 0)),
            keep_dim=bool(emit.int_attribute("keepdims", 1)),
            reduce_all=not axes,
        )

    return rule


def gelu(emit: Emitter) -> None:
    """Gelu, exact or with tanh."""
    approximate = emit.string_attribute("approximate", "none") == "tanh"
    emit.op("gelu", {"X": [emit.read(0)]}, {"Out": [emit.output()]}, approximate=approximate)


RULES: Mapping[str, Rule] = {
    # layers with weights, normalization, pooling
    "Conv": layers.convolution,
    "ConvTranspose": more.transposed_convolution,
    "Gemm": layers.linear,
    "MatMul": layers.matrix_product,
    "BatchNormalization": layers.batch_normalization,
    "InstanceNormalization": more.instance_normalization,
    "LayerNormalization": layers.layer_normalization,
    "LpNormalization": layers.lp_normalization,
    "AveragePool": layers.pool("avg"),
    "MaxPool": layers.pool("max"),
    "GlobalAveragePool": layers.global_pool("avg"),
    "GlobalMaxPool": layers.global_pool("max"),
    # two operands
    "Add": elementwise("elementwise_add", commutative=True),
    "Mul": elementwise("elementwise_mul", commutative=True),
    "Max": elementwise("elementwise_max", commutative=True),
    "Min": elementwise("elementwise_min", commutative=True),
    "Sub": elementwise("elementwise_sub"),
    "Div": elementwise("elementwise_div"),
    "Pow": elementwise("elementwise_pow"),
    "Mod": more.remainder,
    # comparison and logic
    "Equal": elementwise("equal"),
    "Less": elementwise("less_than"),
    "LessOrEqual": elementwise("less_equal"),
    "Greater": elementwise("greater_than"),
    "GreaterOrEqual": elementwise("greater_equal"),
    "And": more.logical("logical_and"),
    "Or": more.logical("logical_or"),
    "Xor": more.logical("logical_xor"),
    "Not": more.logical("logical_not"),
    "Where": more.where,
    # activations
    "Relu": relu,
    "Clip": clip,
    "LeakyRelu": unary("leaky_relu", ("alpha", "alpha", 0.01)),
    "Elu": unary("elu", ("alpha", "alpha", 1.0)),
    "PRelu": layers.prelu,
    "Sigmoid": unary("sigmoid"),
    "Tanh": unary("tanh"),
    "HardSigmoid": unary("hard_sigmoid", ("slope", "alpha", 0.2), ("offset", "beta", 0.5)),
    "HardSwish": unary("hard_swish", threshold=6.0, scale=6.0, offset=3.0),
    "Mish": unary("mish", threshold=20.0),
    "Gelu": gelu,
    "Softmax": softmax("softmax"),
    "LogSoftmax": softmax("log_softmax"),
    "Softplus": unary("softplus", beta=1.0, threshold=20.0),
    "Softsign": unary("softsign"),
    # one operand
    "Abs": unary("abs"),
    "Ceil": unary("ceil"),
    "Cos": unary("cos"),
    "CumSum": more.cumulative_sum,
    "Erf": unary("erf"),
    "Exp": unary("exp"),
    "Floor": unary("floor"),
    "Identity": unary("assign"),
    "Log": unary("log"),
    "Neg": unary("scale", scale=-1.0, bias=0.0, bias_after_scale=True),
    "Reciprocal": unary("reciprocal"),
    "Round": unary("round", decimals=0),
    "Sign": unary("sign"),
    "Sin": unary("sin"),
    "Sqrt": unary("sqrt"),
    "Trilu": more.triangle,
    # reductions
    "ReduceMax": reduce("reduce_max"),
    "ReduceMean": reduce("reduce_mean"),
    "ReduceMin": reduce("reduce_min"),
    "ReduceProd": reduce("reduce_prod"),
    "ReduceSum": reduce("reduce_sum"),
    # search
    "ArgMax": more.extreme_index("arg_max"),
    "ArgMin": more.extreme_index("arg_min"),
    "GatherElements": more.gather_elements,
    "TopK": more.top_k,
    # data movement
    "Cast": shapes.cast,
    "Concat": shapes.concat,
    "DepthToSpace": more.depth_to_space,
    "Expand": shapes.expand,
    "Flatten": shapes.flatten,
    "Gather": shapes.gather,
    "Pad": shapes.pad,
    "Reshape": shapes.reshape,
    "Resize": more.resize,
    "Shape": shapes.shape,
    "Slice": shapes.slice_,
    "Split": shapes.split,
    "Squeeze": shapes.squeeze,
    "Tile": more.tile,
    "Transpose": shapes.transpose,
    "Unsqueeze": shapes.unsqueeze,
}


def write_node(emit: Emitter) -> None:
    """Writes the current node of `emit`. Raises ExportError for an operator without a rule."""
    rule = RULES.get(emit.node.op_type) if emit.node.domain in ("", "ai.onnx") else None
    if rule is None:
        raise emit.refuse(
            "no Paddle operator for it here", "write the model as ONNX, or add a rule to paddle_ops.RULES"
        )
    rule(emit)


def supported_operators() -> Sequence[str]:
    """Names of the ONNX operators that can be written."""
    return sorted(RULES)
