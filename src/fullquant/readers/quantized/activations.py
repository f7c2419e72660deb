"""QuantizeLinear and DequantizeLinear around activations: removed from the graph, kept as grids."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from fullquant.errors import ModelError
from fullquant.graph.edit import (
    add_initializer,
    insert_before,
    node_label,
    producer_of,
    prune,
    scalar_constant,
    take_over,
    taken_names,
    value_name,
)
from fullquant.numerics import affine
from fullquant.numerics.qparams import QParams
from fullquant.readers.quantized.grids import read_grid, same_grid, tensor_name


@dataclass(frozen=True)
class ReadActivation:
    """grid: of the tensor. consumers: the nodes that read it rounded; None for all of them and the graph's output.

    before, after: names of the file's values that hold it before and after its rounding.
    """

    grid: QParams
    consumers: frozenset[str] | None
    before: str
    after: str


@dataclass(frozen=True)
class _Chain:
    """float source -> QuantizeLinear -> Clip of the integers, any number of them -> DequantizeLinear."""

    quantize: ir.Node
    clips: tuple[ir.Node, ...]
    dequantize: ir.Node

    @property
    def source(self) -> ir.Value:
        value = self.quantize.inputs[0]
        assert value is not None
        return value


def read_activations(graph: ir.Graph) -> dict[str, ReadActivation]:
    """{tensor: grid and readers} of every rounded activation; the graph is float afterwards."""
    chains = [_chain(node) for node in graph if node.op_type == "DequantizeLinear"]
    reader = _Reader(graph)
    for chain in sorted(chains, key=lambda chain: len(chain.clips)):
        reader.take(chain)
    for node in [n for n in graph if n.op_type == "QuantizeLinear"]:
        prune(node)
    left = next((node for node in graph if node.op_type in ("QuantizeLinear", "DequantizeLinear")), None)
    if left is not None:
        raise ModelError(
            f"{node_label(left)}: its integers are read by other operators than DequantizeLinear and Clip, "
            "which cannot be read back; export the model with QuantizeLinear and DequantizeLinear in pairs"
        )
    return reader.result()


def _chain(node: ir.Node) -> _Chain:
    clips: list[ir.Node] = []
    current = producer_of(node.inputs[0])
    while current is not None and current.op_type == "Clip":
        clips.insert(0, current)
        current = producer_of(current.inputs[0])
    if current is None or current.op_type != "QuantizeLinear":
        what = "the graph's input" if current is None else node_label(current)
        raise ModelError(
            f"{node_label(node)} reads integers made by {what}; only files with QuantizeLinear in front are read back"
        )
    return _Chain(current, tuple(clips), node)


class _Reader:
    """Takes the chains out of one graph, those without Clip first."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.grids: dict[str, QParams] = {}
        self.tensors: dict[str, ir.Value] = {}
        self.readers: dict[str, set[str]] = {}
        self.outputs: set[str] = set()
        self.places: dict[str, tuple[str, str]] = {}
        self.clamps: set[str] = set()  # names of the nodes that were Clips of integers

    def take(self, chain: _Chain) -> None:
        """Removes the DequantizeLinear; its readers read the float tensor."""
        grid = read_grid(chain.dequantize)
        if not same_grid(grid, read_grid(chain.quantize)):
            raise ModelError(f"{node_label(chain.dequantize)} has another grid than the QuantizeLinear in front of it")
        tensor = self._float_clamp(chain, grid) if chain.clips or self._hides_clamp(chain) else chain.source
        result = chain.dequantize.outputs[0]
        before, after = value_name(chain.source), value_name(result)
        rounded = {str(use.node.name) for use in result.uses()}
        is_output = result.is_graph_output()
        # Both names are needed for one tensor: the output's is the one that the source model had.
        if is_output and not tensor.is_graph_input():
            self._rename(value_name(tensor), value_name(result))
            take_over(tensor, result)
        else:
            for node, index in list(result.uses()):
                node.replace_input_with(index, tensor)
            prune(chain.dequantize)
        self._note(tensor, grid, rounded, is_output)
        self.places.setdefault(value_name(tensor), (before, after))

    def _note(self, tensor: ir.Value, grid: QParams, rounded: set[str], is_output: bool) -> None:
        name = value_name(tensor)
        if name in self.grids and not same_grid(self.grids[name], grid):
            raise ModelError(f"{name!r} is rounded in two ways, which cannot be simulated")
        self.grids[name], self.tensors[name] = grid, tensor
        self.readers.setdefault(name, set()).update(rounded)
        if is_output:
            self.outputs.add(name)

    def _rename(self, old: str, new: str) -> None:
        if old in self.grids:
            self.grids[new], self.tensors[new] = self.grids.pop(old), self.tensors.pop(old)
            self.readers[new], self.places[new] = self.readers.pop(old), self.places.pop(old)

    def _hides_clamp(self, chain: _Chain) -> bool:
        """Whether the variables are named after a tensor that is not there: a ReLU whose bound is the grid's end."""
        result = value_name(chain.dequantize.outputs[0])
        name = tensor_name(result)
        return name not in (result, value_name(chain.source)) and name not in taken_names(self.graph)

    def _float_clamp(self, chain: _Chain, grid: QParams) -> ir.Value:
        """Relu or Clip of the float source. Rounding is monotone: clip(round(x)) = round(clip(x)) at its bounds."""
        low, high = _bounds(chain, grid)
        name = tensor_name(value_name(chain.dequantize.outputs[0]))
        ends = affine.dequantize(np.asarray([low, high]), grid)
        inputs: list[ir.Value | None] = [chain.source]
        relu = low == int(grid.zero_point) and high == grid.spec.qmax
        if not relu:
            inputs += [add_initializer(self.graph, f"{name}.{end}", ends[i]) for i, end in enumerate(("min", "max"))]
        made = insert_before(
            chain.dequantize, "Relu" if relu else "Clip", inputs, name=f"{name}.clamp", output=name, like=chain.source
        )
        producer = made.producer()
        assert producer is not None
        self.clamps.add(str(producer.name))
        return made

    def result(self) -> dict[str, ReadActivation]:
        found: dict[str, ReadActivation] = {}
        for name, tensor in self.tensors.items():
            rounded = self.readers[name]
            # A clamp that was one of integers reads its input rounded or not: the same numbers.
            others = {str(use.node.name) for use in tensor.uses()} - rounded - self.clamps
            whole = not others and (not tensor.is_graph_output() or name in self.outputs)
            found[name] = ReadActivation(self.grids[name], None if whole else frozenset(rounded), *self.places[name])
        return found


def _bounds(chain: _Chain, grid: QParams) -> tuple[int, int]:
    """The integers that are left by all Clips, in the numbers of the grid."""
    low, high = grid.spec.qmin, grid.spec.qmax
    offset = 128 if grid.spec.symmetric and chain.quantize.outputs[0].dtype == ir.DataType.UINT8 else 0
    for clip in chain.clips:
        ends = [scalar_constant(value) for value in clip.inputs[1:3]]
        if len(ends) != 2 or ends[0] is None or ends[1] is None:
            raise ModelError(f"{node_label(clip)} clips integers at bounds that are no constants")
        low, high = max(low, int(ends[0]) - offset), min(high, int(ends[1]) - offset)
    return low, high
