"""A graph that can be changed without changing the one that it was made from."""

from __future__ import annotations

import onnx_ir as ir

from fullquant.graph.edit import constant_value


def copied(model: ir.Model) -> ir.Model:
    """A model with nodes and values of its own. Numbers are shared, for reading only: `set_initializer` replaces them.
    Their names are not, since a value that is renamed renames what it holds.
    """
    copy = model.clone()
    for value in copy.graph.initializers.values():
        array, held = constant_value(value), value.const_value
        if array is not None and held is not None:
            shared = array.view()
            shared.setflags(write=False)
            value.const_value = ir.Tensor(shared, dtype=held.dtype, name=value.name)
    return copy
