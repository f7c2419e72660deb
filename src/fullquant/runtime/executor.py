"""A canonical graph as a torch module: the float teacher, and the student with fake-quantize.

The graph is compiled once into a list of steps over numbered slots; a slot is freed after its last reader, so that
inference holds no more than it needs. In the student, each placed tensor passes through its FakeQuantize where it is
produced; a ReLU or Clip in front of one is part of it (one kernel, as in the runtimes).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import nn

from fullquant.errors import ModelError
from fullquant.numerics.qparams import QParams
from fullquant.placement.constants import layer_bias
from fullquant.placement.decision import Placement
from fullquant.placement.rules import LAYERS
from fullquant.runtime.fake_quantize import FakeQuantize
from fullquant.runtime.parameters import ParameterPlan
from fullquant.runtime.steps import QUANTIZE, Step, fuse, plan_frees
from fullquant.runtime.torch_ops import build_operation, check_operations, clip_bounds

Tensor = torch.Tensor
Tap = Callable[[str, Tensor], Tensor | None]

# Operators whose float initializers are learned; the position of the learned inputs.
_LEARNED: dict[str, tuple[int, ...]] = {
    "Conv": (1, 2), "Gemm": (1, 2), "MatMul": (0, 1), "BatchNormalization": (1, 2), "LayerNormalization": (1, 2),
    "PRelu": (1,), "Add": (0, 1), "Mul": (0, 1),
}  # fmt: skip
# Operators that only move data: a quantized input gives an output that is on the grid already.
MOVES = frozenset({
    "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Pad", "MaxPool", "GlobalMaxPool", "Identity",
    "Split", "Gather", "Expand", "Tile", "Concat", "ReduceMax", "ReduceMin", "DepthToSpace", "Relu",
})  # fmt: skip


def fused_activation(node: ir.Node) -> tuple[float, float] | None:
    """The bounds of a node that only clamps its input (Relu, Clip with constant bounds); None for any other node."""
    if node.op_type == "Relu":
        return 0.0, math.inf
    if node.op_type == "Clip" and all(v is None or v.const_value is not None for v in node.inputs[1:]):
        return clip_bounds(node)
    return None


def moves_constants(node: ir.Node) -> bool:
    """Whether a constant other than 0 is among the values that a node moves: it has a grid of its own, or none."""
    moved = node.inputs if node.op_type in ("Concat", "Pad") else node.inputs[:1]
    constants = [v.const_value for v in moved if v is not None and v.const_value is not None]
    return any(c.dtype == ir.DataType.FLOAT and bool(np.any(c.numpy())) for c in constants)


class GraphModule(nn.Module):
    """forward(images [N,C,H,W] float32) -> the graph's output.

    placement, qparams: given together they make the student; without them the module computes in float.
    """

    def __init__(
        self, model: ir.Model, *, placement: Placement | None = None, qparams: Mapping[str, QParams] | None = None
    ) -> None:
        super().__init__()
        graph = model.graph
        if len(graph.inputs) != 1 or len(graph.outputs) != 1:
            raise ModelError(
                f"a classifier has one input and one output, not {len(graph.inputs)} and {len(graph.outputs)}"
            )
        self.input_name, self.output_name = str(graph.inputs[0].name), str(graph.outputs[0].name)
        self.placement = placement
        self.weights = nn.ParameterDict()
        self.quantizers = nn.ModuleDict()
        self._slots: dict[str, int] = {}
        self._initial: dict[int, str] = {}  # slot -> key of self.weights or of a buffer
        self._keys: dict[str, str] = {}  # initializer -> key
        self._bias_grids: dict[str, tuple[str, str]] = {}  # bias -> (owner of the input's scale, weight)
        self._steps: list[Step] = []  # one for each node and quantizer, for who looks at tensors on the way
        self._fused: list[Step] = []
        self._frozen: dict[int, Tensor] | None = None
        self._plan: ParameterPlan | None = None
        self._qparams = dict(qparams or {})
        check_operations(model)
        self._compile(graph)

    # ---- compilation -------------------------------------------------------------------------------------------

    def _slot(self, name: str) -> int:
        return self._slots.setdefault(name, len(self._slots))

    def _compile(self, graph: ir.Graph) -> None:
        self._slot(self.input_name)
        learned = _learned_initializers(graph)
        if self.placement is not None:
            self._create_quantizers()
        self._quantize_input()
        for node in graph:
            self._add_node(node, learned)
            self._note_bias(node)
        plan_frees(self._steps, {*self._initial, self._slot(self.output_name)})
        self._fused = fuse(self._steps, self._initial)
        self._hidden = frozenset().union(*(step.hidden for step in self._fused))

    def _create_quantizers(self) -> None:
        assert self.placement is not None
        for decision in sorted(self.placement, key=lambda d: d.shares is not None):
            if decision.spec is None or decision.kind == "bias" or decision.fused:
                continue
            owner = self.placement.scale_owner(decision.tensor)
            if owner not in self._qparams:
                raise ModelError(f"tensor {owner!r} is placed in integers but has no scale: calibrate it first")
            master = self.quantizers[_key(owner)] if decision.shares is not None else None
            assert master is None or isinstance(master, FakeQuantize)
            self.quantizers[_key(decision.tensor)] = FakeQuantize(self._qparams[owner], owner=master)

    def quantizer(self, tensor: str) -> FakeQuantize | None:
        """The FakeQuantize of a tensor; None where it stays float or lies inside a fused kernel."""
        key = _key(tensor)
        if key not in self.quantizers:
            return None
        found = self.quantizers[key]
        assert isinstance(found, FakeQuantize)
        return found

    def _restricted(self, tensor: str) -> frozenset[str] | None:
        decision = None if self.placement is None else self.placement.get(tensor)
        return None if decision is None or decision.spec is None else decision.consumers

    def _quantize_input(self) -> None:
        quantizer = self.quantizer(self.input_name)
        if quantizer is not None:
            self._emit_quantizer(self.input_name, quantizer)

    def _emit_quantizer(self, tensor: str, quantizer: FakeQuantize) -> None:
        """The tensor's slot is rewritten in place, unless only some consumers read the quantized values."""
        source = self._slot(tensor)
        target = source if self._restricted(tensor) is None else self._slot(tensor + "\0quantized")
        self._steps.append(Step(QUANTIZE, quantizer, [source], [target], [""]))

    def _read_slot(self, tensor: str, node: ir.Node) -> int:
        consumers = self._restricted(tensor)
        if consumers is not None and node.name in consumers:
            return self._slot(tensor + "\0quantized")
        return self._slot(tensor)

    def _add_node(self, node: ir.Node, learned: set[str]) -> None:
        inputs: list[int] = []
        for value in node.inputs:
            if value is None or value.name is None:
                continue
            if value.const_value is not None:
                if _is_computed_with(node, value):
                    inputs.append(self._initializer(value, learned))
                continue
            inputs.append(self._read_slot(value.name, node))
        outputs = [str(v.name) for v in node.outputs if v.name]
        slots = [self._slot(name) for name in outputs]
        operation = build_operation(node)
        quantizers = {name: q for name in outputs if (q := self.quantizer(name)) is not None}
        quantizers = {name: q for name, q in quantizers.items() if not self._on_grid_already(node, name)}
        bounds = fused_activation(node)
        if bounds is not None and quantizers and self._restricted(outputs[0]) is None:
            # Clamp and rounding in one kernel.
            (quantizer,) = quantizers.values()
            quantizer.low, quantizer.high = bounds
            self._steps.append(Step(QUANTIZE, quantizer, inputs[:1], slots, outputs))
            return
        self._steps.append(Step(node.op_type, operation, inputs, slots, outputs, clamp=bounds))
        for name, quantizer in quantizers.items():
            self._emit_quantizer(name, quantizer)

    def _note_bias(self, node: ir.Node) -> None:
        """A layer that reads integers adds its bias on the int32 grid; that of a MatMul is added by the next node."""
        value = None if self.placement is None or node.op_type not in LAYERS else layer_bias(node)
        if self.placement is None or value is None:
            return
        x, weight = (None if v is None else str(v.name) for v in node.inputs[:2])
        bias = str(value.name)
        decision = self.placement.get(bias)
        if x is None or weight is None or decision is None or decision.spec is None:
            return
        read = self.placement.get(x)
        if read is None or read.spec is None or self.quantizer(weight) is None:
            return
        if read.consumers is None or node.name in read.consumers:
            self._bias_grids[bias] = (self.placement.scale_owner(x), weight)

    def _on_grid_already(self, node: ir.Node, tensor: str) -> bool:
        """True where rounding again would change nothing: data moved from tensors with the same scale."""
        if node.op_type not in MOVES or self.placement is None or self._restricted(tensor) is not None:
            return False
        if moves_constants(node):
            return False
        owner = self.placement.scale_owner(tensor)
        sources = [v.name for v in node.inputs if v is not None and v.name and v.const_value is None]
        for source in sources:
            decision = self.placement.get(str(source))
            if decision is None or decision.spec is None or decision.fused or decision.consumers is not None:
                return False
            if self.placement.scale_owner(str(source)) != owner:
                return False
        return bool(sources)

    def _initializer(self, value: ir.Value, learned: set[str]) -> int:
        name = str(value.name)
        if name not in self._keys:
            key = _key(name)
            self._keys[name] = key
            assert value.const_value is not None
            tensor = torch.from_numpy(np.array(value.const_value.numpy(), order="C"))
            if tensor.ndim == 4:
                tensor = tensor.contiguous(memory_format=torch.channels_last)
            if name in learned:
                self.weights[key] = nn.Parameter(tensor)
            else:
                self.register_buffer(key, tensor)
            self._initial[self._slot(name)] = name
        return self._slot(name)

    # ---- execution ---------------------------------------------------------------------------------------------

    def parameter(self, name: str) -> Tensor:
        """The present value of an initializer by its graph name (learned or not)."""
        key = self._keys[name]
        return self.weights[key] if key in self.weights else self.get_buffer(key)

    def scale_weight(self, name: str, factor: Tensor) -> None:
        """Multiplies a weight and its per_channel scales by `factor` (C,): the integers stay, their meaning grows."""
        quantizer = self.quantizer(name)
        if quantizer is None or quantizer.spec.axis is None:
            raise ModelError(f"{name!r} has no scale per channel")
        weight = self.parameter(name)
        shape = [1] * weight.ndim
        shape[quantizer.spec.axis] = -1
        weight.data.mul_(factor.view(shape))
        quantizer.log_scale.data.add_(torch.log(factor))

    def _initial_values(self) -> dict[int, Tensor]:
        """Every initializer, fake-quantized once, however many readers it has."""
        if self._frozen is not None:
            return self._frozen
        return self._planned().values({slot: self.parameter(name) for slot, name in self._initial.items()})

    def _planned(self) -> ParameterPlan:
        """What is computed of the parameters in each pass; made again where they have moved to another device."""
        device = next((p.device for p in self.parameters()), torch.device("cpu"))
        if self._plan is None or self._plan.device != device:
            initial = {slot: self.parameter(name) for slot, name in self._initial.items()}
            owners = {slot: q for slot, name in self._initial.items() if (q := self.quantizer(name)) is not None}
            grids = {
                self._slots[bias]: (self._owner(x), self._owner(weight))
                for bias, (x, weight) in self._bias_grids.items()
            }
            self._plan = ParameterPlan(device, initial, owners, grids, self.fake_quantizers())
        return self._plan

    def _owner(self, tensor: str) -> FakeQuantize:
        quantizer = self.quantizer(tensor)
        assert quantizer is not None
        return quantizer

    def freeze(self, frozen: bool = True) -> None:
        """For evaluation: computes scales and quantized weights once, until `freeze(False)`. Not for training."""
        self._frozen = None
        scales = self._planned().scales
        scales.release()
        if frozen:
            scales.use()
            with torch.no_grad():
                self._frozen = self._initial_values()

    def forward(
        self,
        images: Tensor,
        keep: Collection[str] = (),
        tap: Tap | None = None,
        tapped: Collection[str] | None = None,
    ) -> Any:
        """The output; with `keep` a pair (output, {name: tensor}).

        `tap(name, tensor)` sees every computed tensor, and what it returns, unless None, takes the tensor's place.
        tapped: the only names that it looks at, where they are few: the others need not be computed one by one.
        """
        if self._frozen is not None:
            return self._run(images, keep, tap, tapped)
        scales = self._planned().scales
        scales.use()
        try:
            return self._run(images, keep, tap, tapped)
        finally:
            scales.release()

    def _program(self, wanted: Collection[str] | None) -> list[Step]:
        """The fused steps, unless somebody wants all tensors, None, or one that they do not compute."""
        whole = wanted is None or any(self._slots.get(name) in self._hidden for name in wanted)
        return self._steps if whole else self._fused

    def _run(self, images: Tensor, keep: Collection[str], tap: Tap | None, tapped: Collection[str] | None) -> Any:
        slots: list[Tensor | None] = [None] * len(self._slots)
        for slot, tensor in self._initial_values().items():
            slots[slot] = tensor
        if images.ndim == 4:
            images = images.contiguous(memory_format=torch.channels_last)
        slots[0] = images
        if tap is not None:
            tap(self.input_name, images)
        kept: dict[str, Tensor] = {}
        seen = () if tap is None else tapped
        for step in self._program(None if seen is None else (*keep, *seen)):
            result = step.operation(*[slots[i] for i in step.inputs])
            results = result if isinstance(result, tuple | list) else (result,)
            for slot, tensor, name in zip(step.outputs, results, step.output_names, strict=False):
                replacement = tap(name, tensor) if tap is not None and name else None
                slots[slot] = tensor if replacement is None else replacement
            for name in keep:
                if self._slots.get(name) in step.outputs:
                    kept[name] = slots[self._slots[name]]  # type: ignore[assignment]
            for slot in step.free:
                slots[slot] = None
        output = slots[self._slots[self.output_name]]
        if not keep:
            return output
        missing = [name for name in keep if name not in kept]
        if missing:
            raise ModelError(
                f"no tensor {missing[0]!r} in the graph after folding; `fullquant inspect` lists the tensors"
            )
        return output, kept

    def tensor_names(self) -> list[str]:
        """Names of all computed tensors, in order of computation."""
        return [name for step in self._steps for name in step.output_names if name]

    # ---- results -----------------------------------------------------------------------------------------------

    def current_qparams(self) -> dict[str, QParams]:
        """Scale and zero point of every scale owner, as learned so far."""
        found: dict[str, QParams] = {}
        if self.placement is None:
            return found
        for decision in self.placement:
            quantizer = self.quantizer(decision.tensor)
            if quantizer is not None and decision.shares is None:
                found[decision.tensor] = quantizer.qparams()
        return found

    def fake_quantizers(self) -> list[FakeQuantize]:
        """Every FakeQuantize, those that share a scale included."""
        return [module for module in self.quantizers.values() if isinstance(module, FakeQuantize)]

    def set_qparams(self, qparams: Mapping[str, QParams]) -> None:
        """Sets the scales of their owners."""
        for tensor, params in qparams.items():
            quantizer = self.quantizer(tensor)
            if quantizer is None:
                raise ModelError(f"tensor {tensor!r} has no scale to set")
            quantizer.set_scale(params.scale)

    def store_weights(self, model: ir.Model) -> None:
        """Writes the learned weights into the initializers of `model` (a graph with the same names)."""
        for name, key in self._keys.items():
            if key not in self.weights:
                continue
            array = self.weights[key].detach().cpu().contiguous().numpy().copy()
            model.graph.initializers[name].const_value = ir.tensor(array, name=name)


def _key(name: str) -> str:
    """A module key for a tensor name: torch does not allow dots in keys."""
    return "t_" + name.replace("~", "~~").replace(".", "~d")


def _is_computed_with(node: ir.Node, value: ir.Value) -> bool:
    """Whether a constant takes part in the arithmetic, as opposed to a shape or a bound read at build time."""
    if node.op_type in ("Reshape", "Slice", "Pad", "Squeeze", "Unsqueeze", "Expand", "Tile", "Split", "Clip", "Resize",
                        "ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "TopK", "CumSum",
                        "Trilu"):  # fmt: skip
        return node.inputs[0] is value
    return True


def _learned_initializers(graph: ir.Graph) -> set[str]:
    learned: set[str] = set()
    for node in graph:
        for index in _LEARNED.get(node.op_type, ()):
            value = node.inputs[index] if index < len(node.inputs) else None
            if value is not None and value.const_value is not None and value.const_value.dtype == ir.DataType.FLOAT:
                learned.add(str(value.name))
    return learned
