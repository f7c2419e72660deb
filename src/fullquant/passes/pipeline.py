"""The order of the passes, and the runner that verifies the graph after each."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir

from fullquant.errors import ModelError
from fullquant.graph.collection import without_collection
from fullquant.graph.copying import copied
from fullquant.graph.verify import verify
from fullquant.passes.affine_to_depthwise import affine_to_depthwise
from fullquant.passes.batch_expand import batch_expand
from fullquant.passes.channels_first import channels_first
from fullquant.passes.constants import constants_to_initializers, fold_constants
from fullquant.passes.explicit_attributes import explicit_attributes
from fullquant.passes.fold_batch_norm import fold_batch_norm
from fullquant.passes.fold_matmul_affine import fold_matmul_affine
from fullquant.passes.fold_pad import fold_pad
from fullquant.passes.fold_scale_shift import fold_scale_shift
from fullquant.passes.fold_shape_arithmetic import fold_shape_arithmetic
from fullquant.passes.free_batch import free_batch
from fullquant.passes.fuse_activations import fuse_gelu, fuse_mish, fuse_sigmoid
from fullquant.passes.fuse_hard_swish import fuse_hard_sigmoid, fuse_hard_swish
from fullquant.passes.fuse_layer_norm import fold_layer_norm_parameters, fuse_layer_norm
from fullquant.passes.fuse_lp_normalization import fuse_lp_normalization
from fullquant.passes.global_pooling import global_pooling
from fullquant.passes.infer_shapes import infer_shapes
from fullquant.passes.merge_branches import merge_branches
from fullquant.passes.normal_arithmetic import normal_arithmetic
from fullquant.passes.normal_clip import normal_clip
from fullquant.passes.normal_einsum import normal_einsum
from fullquant.passes.normal_gemm import normal_gemm
from fullquant.passes.normal_normalization import normal_normalization
from fullquant.passes.normal_power import normal_power
from fullquant.passes.normal_reduction import normal_reduction
from fullquant.passes.normal_reshape import normal_reshape
from fullquant.passes.pad_tokens import pad_tokens
from fullquant.passes.remove_identity import remove_identity
from fullquant.passes.remove_unused import remove_unused
from fullquant.passes.shift_before_scale import shift_before_scale

_log = logging.getLogger(__name__)

Pass = Callable[[ir.Model], int]

#: Constants and shapes first, since every later pass asks for them; then one form for each operator; then the folds.
#: affine_to_depthwise comes last: what can fold into a neighbour must have had its chance.
PIPELINE: tuple[Pass, ...] = (
    constants_to_initializers,
    infer_shapes,
    fold_constants,
    fold_shape_arithmetic,
    normal_reshape,
    free_batch,
    batch_expand,
    pad_tokens,
    remove_identity,
    channels_first,
    normal_einsum,
    fuse_lp_normalization,
    normal_reduction,
    normal_arithmetic,
    normal_clip,
    normal_gemm,
    explicit_attributes,
    global_pooling,
    fuse_hard_sigmoid,
    fuse_hard_swish,
    fuse_gelu,
    fuse_mish,
    fuse_sigmoid,
    fuse_layer_norm,
    normal_normalization,
    fold_layer_norm_parameters,
    fold_pad,
    fold_batch_norm,
    fold_matmul_affine,
    fold_scale_shift,
    shift_before_scale,
    merge_branches,
    remove_unused,
)
#: Run when nothing else rewrites any more.
FINAL: tuple[Pass, ...] = (normal_power, affine_to_depthwise, remove_unused, infer_shapes)

#: Every pass makes the graph smaller or more normal, so a model that isn't finished by then shows a mistake in a pass.
_MAX_ROUNDS = 50


@dataclass(frozen=True)
class PassResult:
    """How many rewrites a pass made, over all rounds."""

    name: str
    count: int


def run_passes(model: ir.Model) -> list[PassResult]:
    """Rewrites the model in place to the canonical graph; one result per pass, in the pipeline's order.

    The pipeline runs until a whole round rewrites nothing. After every pass that did something the graph's invariants
    are checked. Raises ModelError for a graph that is invalid on entry, or whose shapes contradict each other.
    """
    verify(model)
    counts = {rewrite.__name__: 0 for rewrite in (*PIPELINE, *FINAL)}
    for _ in range(_MAX_ROUNDS):
        changed = sum(_apply(rewrite, model, counts) for rewrite in PIPELINE)
        if not changed:
            changed = sum(_apply(rewrite, model, counts) for rewrite in FINAL)
        if not changed:
            return [PassResult(name, count) for name, count in counts.items()]
    raise ModelError(f"the passes did not come to an end in {_MAX_ROUNDS} rounds: {counts}; please report this model")


@without_collection()
def prepare(model: ir.Model) -> ir.Model:
    """A deep copy in canonical form; the argument is left untouched. Raises as run_passes, with the file."""
    copy = copied(model)
    try:
        run_passes(copy)
    except ModelError as error:
        file = model.metadata_props.get("fullquant.model_file")
        if file is None or str(error).startswith(file):
            raise
        raise ModelError(f"{file}: {error}; export the model again") from error
    return copy


def _apply(rewrite: Pass, model: ir.Model, counts: dict[str, int]) -> int:
    count = rewrite(model)
    if count:
        _log.debug("%s: %d rewrites", rewrite.__name__, count)
        counts[rewrite.__name__] += count
        try:
            verify(model)
        except ModelError as error:
            raise ModelError(f"after the pass {rewrite.__name__}: {error}") from error
    return count
