"""Edits and invariants on onnx_ir graphs, and a stable text form."""
