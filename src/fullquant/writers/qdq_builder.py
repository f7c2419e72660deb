"""Puts QuantizeLinear and DequantizeLinear into a graph, as a placement says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from fullquant.errors import ExportError
from fullquant.graph.clip import clip_bounds
from fullquant.graph.edit import consumers, input_at, producer_of, taken_names, value_name
from fullquant.numerics import affine
from fullquant.numerics.qparams import FloatArray, QParams, QuantSpec
from fullquant.placement.decision import Decision, Placement
from fullquant.writers.integer_padding import padding_value, split_padded_averages
from fullquant.writers.onnx_constants import ConstantWriter, NameRegister, StorageType, own_storage, storage_offset

_DTYPES = {"int8": ir.DataType.INT8, "uint8": ir.DataType.UINT8}


@dataclass(frozen=True)
class Layout:
    """How the same quantization is written for one runtime.

    integer_clamp: Relu and Clip act on the integers, behind QuantizeLinear; so does Pad, with the zero point.
    int32_bias: biases are int32 constants; else float32 ones with the same, rounded values.
    zero_point_free: every zero point must be 0, so activations are int8.
    storage: of activations: one type for all, or None: that of each grid, so that a symmetric one has zero point 0.
    norms_in_parts: see `wide_norms`.
    """

    integer_clamp: bool
    int32_bias: bool
    zero_point_free: bool
    storage: StorageType | None
    norms_in_parts: bool = False


class QdqBuilder:
    """Rewrites one graph in place. Values are handled in the order of computation."""

    def __init__(
        self,
        graph: ir.Graph,
        placement: Placement,
        qparams: Mapping[str, QParams],
        layout: Layout,
        storage: StorageType | None,
        weight_type: StorageType,
    ) -> None:
        self.graph, self.placement, self.qparams = graph, placement, qparams
        self.layout, self.storage, self.weight_type = layout, storage, weight_type
        if layout.integer_clamp:
            self.placement = split_padded_averages(graph, placement, self._has_offset)
        self.names = NameRegister(taken_names(graph))
        self.constants = ConstantWriter(graph, self.names)
        #: Tensor -> its integers, the output of QuantizeLinear or of the Clip behind it.
        self.integers: dict[str, ir.Value] = {}
        #: Tensor -> its scale and zero point.
        self.grids: dict[str, tuple[ir.Value, ir.Value]] = {}
        #: Name of a DequantizeLinear's output -> the tensor that it stands for.
        self.tensor_of: dict[str, str] = {}

    def build(self) -> None:
        # Decisions are found by names. Biases first, while weights and activations still have theirs; then weights.
        nodes = list(self.graph)
        for node in nodes:
            self._write_bias(node)
        for node in nodes:
            self._write_constants(node)
        for value in list(self.graph.inputs):
            self._write_activation(value, None)
        for node in nodes:
            if not self._write_integer_clamp(node) and not self._write_integer_pad(node):
                for value in node.outputs:
                    self._write_activation(value, node)
        self._drop_unread_initializers()

    def _drop_unread_initializers(self) -> None:
        for name, value in list(self.graph.initializers.items()):
            if not list(value.uses()):
                self.graph.initializers.pop(name)

    # --- lookups -------------------------------------------------------------------------------------------------

    def _params(self, tensor: str) -> QParams:
        owner = self.placement.scale_owner(tensor)
        found = self.qparams.get(owner)
        if found is None:
            whose = f"{tensor!r}" if owner == tensor else f"{tensor!r} (which shares that of {owner!r})"
            raise ExportError(f"no scale was calibrated for {whose}; calibrate every placed tensor before writing")
        return found

    def _activation_params(self, tensor: str) -> QParams:
        params = self._params(tensor)
        if params.spec.axis is not None:
            raise ExportError(f"{tensor!r} has a scale per channel, which no runtime takes for activations")
        return params

    def _storage(self, spec: QuantSpec) -> StorageType:
        return self.storage or own_storage(spec)

    def _has_offset(self, tensor: str) -> bool:
        """Whether 0 is another integer than 0 in the file."""
        params = self._activation_params(tensor)
        offset = storage_offset(params.spec, self._storage(params.spec), tensor)
        return bool(np.any(params.zero_point + offset != 0))

    def _decision(self, value: ir.Value | None) -> Decision | None:
        decision = None if value is None or not value.name else self.placement.get(value.name)
        return None if decision is None or decision.spec is None else decision

    def _reads_integers(self, node: ir.Node, value: ir.Value | None) -> bool:
        """Whether the node reads the quantized form of an activation."""
        decision = self._decision(value)
        if decision is None or decision.kind != "activation" or decision.fused:
            return False
        return decision.consumers is None or node.name in decision.consumers

    # --- constants -----------------------------------------------------------------------------------------------

    def _write_constants(self, node: ir.Node) -> None:
        for index, value in enumerate(node.inputs):
            decision = self._decision(value)
            if value is None or decision is None or decision.kind != "weight":
                continue
            is_weight = index == 1 and node.op_type in ("Conv", "Gemm", "MatMul")
            params = self._params(value_name(value))
            storage = self.weight_type if is_weight else self._storage(params.spec)
            node.replace_input_with(index, self.constants.quantized(node, value, params, storage))

    def _write_bias(self, node: ir.Node) -> None:
        """The bias of Conv and Gemm, and the constant that an Add puts on a product of MatMul."""
        for index, value in enumerate(node.inputs):
            decision = self._decision(value)
            if value is None or decision is None or decision.kind != "bias":
                continue
            scale = self._bias_scale(node)
            if scale is None:
                continue
            if self.layout.int32_bias:
                node.replace_input_with(index, self.constants.bias(node, value, scale))
            else:
                node.replace_input_with(index, self.constants.rounded_bias(value, scale))

    def _bias_scale(self, node: ir.Node) -> FloatArray | None:
        """scale_x * scale_w, () or (O,); None where the layer computes in float, so that its bias stays float."""
        layer: ir.Node | None = node
        if node.op_type == "Add":
            layer = next((p for value in node.inputs if (p := producer_of(value, "MatMul")) is not None), None)
        if layer is None:
            return None
        data, weight = input_at(layer, 0), input_at(layer, 1)
        decision = self._decision(weight)
        if data is None or weight is None or decision is None or not self._reads_integers(layer, data):
            return None
        weight_scale = self._params(value_name(weight)).scale
        return np.asarray(self._activation_params(value_name(data)).scale * weight_scale, dtype=np.float32)

    # --- activations ---------------------------------------------------------------------------------------------

    def _write_activation(self, value: ir.Value, producer: ir.Node | None) -> None:
        """value -> QuantizeLinear -> DequantizeLinear -> the readers that the decision names."""
        decision = self._decision(value)
        if decision is None or decision.kind != "activation" or decision.fused:
            return
        chosen = decision.consumers
        readers = [(node, index) for node, index in list(value.uses()) if chosen is None or node.name in chosen]
        is_output = value.is_graph_output() and chosen is None
        if not readers and not is_output:
            return
        tensor = value_name(value)
        spec = self._activation_params(tensor).spec
        cursor = _Cursor(self.graph, producer)
        integers = self._quantize(cursor, tensor, value, (spec.qmin, spec.qmax))
        self._dequantize(cursor, tensor, integers, value, readers, is_output)

    def _write_integer_clamp(self, node: ir.Node) -> bool:
        """a -> Relu -> b becomes a -> QuantizeLinear(scale of b) -> Clip(q(0), qmax) -> DequantizeLinear -> readers.

        True if it was done: a is inside the kernel, or is quantized with the scale of b so that only the Clip is new.
        """
        bounds = clip_bounds(node) if self.layout.integer_clamp else None
        before, after = input_at(node, 0), node.outputs[0]
        decision = self._decision(after)
        if bounds is None or before is None or decision is None or decision.fused or decision.consumers is not None:
            return False
        tensor = value_name(after)
        low, high = (
            int(q) for q in affine.quantize(np.asarray(bounds[1:], dtype=np.float32), self._activation_params(tensor))
        )
        cursor = _Cursor(self.graph, node)
        source = self.tensor_of.get(value_name(before))
        before_decision = self._decision(before)
        if source is not None and self.placement.scale_owner(source) == self.placement.scale_owner(tensor):
            integers = self._clip(cursor, tensor, self.integers[source], (low, high))
        elif before_decision is not None and before_decision.fused and consumers(before) == (node,):
            integers = self._quantize(cursor, tensor, before, (low, high))
        else:
            return False
        self._dequantize(cursor, tensor, integers, after, list(after.uses()), after.is_graph_output())
        self.graph.remove(node, safe=True)
        return True

    def _write_integer_pad(self, node: ir.Node) -> bool:
        """a -> QuantizeLinear -> Pad with the integer that stands for the constant -> DequantizeLinear; True if done.

        OpenVINO moves a DequantizeLinear behind a Pad of floats along one axis, and then pads with the integer 0
        whatever the zero point is (2026.4.1; decision 0019). Other runtimes are spared a pass in float.
        """
        before, after = input_at(node, 0), node.outputs[0]
        decision = self._decision(after)
        value = padding_value(node) if self.layout.integer_clamp and node.op_type == "Pad" else None
        if value is None or before is None or decision is None or decision.fused or decision.consumers is not None:
            return False
        tensor, source = value_name(after), self.tensor_of.get(value_name(before))
        if source is None or self.placement.scale_owner(source) != self.placement.scale_owner(tensor):
            return False
        cursor = _Cursor(self.graph, node)
        params = self._activation_params(tensor)
        storage = self._storage(params.spec)
        filling = affine.quantize(value, params) + storage_offset(params.spec, storage, tensor)
        constant = self.constants.initializer(f"{tensor}.filling", filling.astype(storage))
        inputs = [self.integers[source], node.inputs[1], constant, *node.inputs[3:]]
        integers = self._insert(cursor, "Pad", inputs, str(node.name), f"{tensor}.quantized", after)
        integers.type = ir.TensorType(_DTYPES[storage])
        self._dequantize(cursor, tensor, integers, after, list(after.uses()), after.is_graph_output())
        self.graph.remove(node, safe=True)
        maker = before.producer()
        if maker is not None and not list(before.uses()) and not before.is_graph_output():
            self.graph.remove(maker, safe=True)
        return True

    def _quantize(self, cursor: _Cursor, tensor: str, value: ir.Value, bounds: tuple[int, int]) -> ir.Value:
        """The integers of a tensor, inside `bounds` (in the numbers of its spec)."""
        params = self._activation_params(tensor)
        source = value
        if not self.layout.integer_clamp and not self._covers_storage(params, bounds):
            limits = affine.dequantize(np.asarray([params.spec.qmin, params.spec.qmax]), params)
            ends = [self.constants.initializer(f"{tensor}.{name}", limits[i]) for i, name in enumerate(("min", "max"))]
            source = self._insert(cursor, "Clip", [value, *ends], f"{tensor}.clip", f"{tensor}.clipped", value)
        integers = self._insert(
            cursor, "QuantizeLinear", [source, *self._grid(tensor)], f"{tensor}.quantize", f"{tensor}.quantized", value
        )
        integers.type = ir.TensorType(_DTYPES[self._storage(params.spec)])
        return self._clip(cursor, tensor, integers, bounds) if self.layout.integer_clamp else integers

    def _clip(self, cursor: _Cursor, tensor: str, integers: ir.Value, bounds: tuple[int, int]) -> ir.Value:
        """Clip of integers; nothing where the storage type ends at the same numbers."""
        params = self._activation_params(tensor)
        if self._covers_storage(params, bounds):
            return integers
        storage = self._storage(params.spec)
        offset = storage_offset(params.spec, storage, tensor)
        ends = [
            self.constants.initializer(f"{tensor}.{name}", np.asarray(bound + offset, dtype=storage))
            for name, bound in zip(("qmin", "qmax"), bounds, strict=True)
        ]
        return self._insert(cursor, "Clip", [integers, *ends], f"{tensor}.clamp", f"{tensor}.clamped", integers)

    def _covers_storage(self, params: QParams, bounds: tuple[int, int]) -> bool:
        """Whether QuantizeLinear's own saturation ends at the bounds."""
        storage = self._storage(params.spec)
        offset = storage_offset(params.spec, storage, "a tensor")
        low, high = (0, 255) if storage == "uint8" else (-128, 127)
        return bounds[0] + offset <= low and bounds[1] + offset >= high

    def _grid(self, tensor: str) -> tuple[ir.Value, ir.Value]:
        """Scale and zero point of a tensor as initializers, shared by its QuantizeLinear and DequantizeLinear."""
        if tensor not in self.grids:
            params = self._activation_params(tensor)
            storage = self._storage(params.spec)
            zero_point = (params.zero_point + storage_offset(params.spec, storage, tensor)).astype(storage)
            if self.layout.zero_point_free and np.any(zero_point != 0):
                raise ExportError(f"{tensor!r} has a zero point other than 0; place symmetric grids for this runtime")
            self.grids[tensor] = (
                self.constants.initializer(f"{tensor}.scale", params.scale),
                self.constants.initializer(f"{tensor}.zero_point", zero_point),
            )
        return self.grids[tensor]

    def _dequantize(
        self,
        cursor: _Cursor,
        tensor: str,
        integers: ir.Value,
        value: ir.Value,
        readers: list[tuple[ir.Node, int]],
        is_output: bool,
    ) -> None:
        """DequantizeLinear behind the integers; the readers, and the graph's output if it is one, take its result."""
        self.integers[tensor] = integers
        inputs = [integers, *self._grid(tensor)]
        result = self._insert(
            cursor, "DequantizeLinear", inputs, f"{tensor}.dequantize", f"{tensor}.dequantized", value
        )
        for reader, index in readers:
            reader.replace_input_with(index, result)
        if is_output:
            for index, output in enumerate(self.graph.outputs):
                if output is value:
                    self.graph.outputs[index] = result
            value.name, result.name = self.names.reserve(f"{tensor}.float"), tensor
        self.tensor_of[value_name(result)] = tensor

    def _insert(
        self, cursor: _Cursor, op_type: str, inputs: Sequence[ir.Value | None], name: str, output: str, like: ir.Value
    ) -> ir.Value:
        node = ir.node(op_type, inputs)
        node.name = self.names.reserve(name)
        cursor.insert(node)
        result = node.outputs[0]
        result.name = self.names.reserve(output)
        result.shape = like.shape
        result.type = ir.TensorType(ir.DataType.FLOAT) if op_type == "DequantizeLinear" else like.type
        return result


class _Cursor:
    """A place in the list of nodes: behind a node, or at the beginning; moves on with every insertion."""

    def __init__(self, graph: ir.Graph, behind: ir.Node | None) -> None:
        self._graph, self._behind = graph, behind

    def insert(self, node: ir.Node) -> None:
        """Puts the node at the place, and the place behind the node."""
        if self._behind is None:
            self._graph.insert_before(self._graph[0], node)
        else:
            self._graph.insert_after(self._behind, node)
        self._behind = node
