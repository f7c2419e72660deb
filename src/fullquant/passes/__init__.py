"""Rewrites of the graph: one per file, each a function that changes a model in place and returns how often it did."""

from fullquant.passes.equalise import equalise
from fullquant.passes.pipeline import PassResult, prepare, run_passes

__all__ = ["PassResult", "equalise", "prepare", "run_passes"]
