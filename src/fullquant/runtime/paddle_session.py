"""Paddle Inference. The only module that imports paddle, and only when a session is opened: it takes seconds."""

from __future__ import annotations

import os
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from fullquant.errors import EngineError, ModelError
from fullquant.formats.framework_pb2 import OpDesc, ProgramDesc
from fullquant.formats.pir_json import load_pir
from fullquant.readers.pir import load_pir_program
from fullquant.readers.program_desc import load_program
from fullquant.runtime import sessions
from fullquant.runtime.executed import ExecutedGraph, ExecutedOperator, executed_graph

Array = npt.NDArray[Any]

_STDERR = threading.Lock()  # the descriptor belongs to the whole process
_QUANTIZERS = ("quantize_linear", "fake_quantize")
# PaddlePaddle 3.3.1: oneDNN's kernel of this operator writes beyond its output and kills the process, in float too.
_BROKEN_IN_ONEDNN = frozenset({"pad"})
_LAYERS = frozenset({
    "conv2d", "depthwise_conv2d", "conv2d_transpose", "fused_conv2d", "fc", "mul", "matmul", "matmul_v2",
    "fused_matmul",
})  # fmt: skip
# What the fuse and int8 passes turn operators into.
_MADE_BY_PASSES = frozenset(
    {"fc", "fused_conv2d", "fused_matmul", "fused_transpose", "quantize", "dequantize", "requantize"}
)


class PaddleSession:
    """Paddle Inference on the CPU: `*.pdmodel` and `*.json` programs.

    engine "paddle" switches oneDNN off (Paddle 3 has it on by default): every operator, quantize_linear and
    dequantize_linear included, is computed in float32 as the file says. "paddle_onednn" switches it on, with its int8
    passes where a `.pdmodel` holds quantizers; they take the scales out of the file and round as their kernels do.
    """

    def __init__(self, model: Path, params: Path, engine: str, optimize: bool, threads: int | None) -> None:
        self.engine = engine
        self._files = model, params
        self._settings = optimize, threads
        with _stderr_discarded():
            self._predictor = _paddle_inference().create_predictor(self._config())
        self.input_names: tuple[str, ...] = tuple(self._predictor.get_input_names())
        self.output_names: tuple[str, ...] = tuple(self._predictor.get_output_names())
        self._pixels = _pixels(model)

    def _config(self) -> Any:
        (model, params), (optimize, threads) = self._files, self._settings
        inference = _paddle_inference()
        # parameters in separate files: Paddle takes the folder, and looks for __model__ in it
        config = inference.Config(str(params)) if params.is_dir() else inference.Config(str(model), str(params))
        config.disable_glog_info()
        config.switch_ir_optim(optimize)
        if not optimize and model.suffix != ".json":
            # Else every tensor of the program stays: 7.5 GB for 32 images of EfficientNet-Lite1, with this 0.9, and the
            # same numbers. Operators are computed in the order of the file either way. Paddle refuses some
            # `.json` programs with it.
            config.enable_memory_optim()
        if threads is not None:
            config.set_cpu_math_library_num_threads(threads)
        if self.engine == "paddle_onednn":
            _enable_onednn(config, model)
        else:
            config.disable_mkldnn()
        return config

    def run(self, feeds: Mapping[str, Array]) -> list[Array]:
        """feeds: {input name: array of any batch size}; the outputs as copies."""
        sessions.check_feeds(feeds, self.input_names, self.engine)
        try:
            for name in self.input_names:
                array = np.ascontiguousarray(feeds[name])
                handle = self._predictor.get_input_handle(name)
                if name in self._pixels:
                    array = sessions.as_pixels(array)
                handle.reshape(array.shape)
                handle.copy_from_cpu(array)
            self._predictor.run()
            return [self._predictor.get_output_handle(name).copy_to_cpu() for name in self.output_names]
        except Exception as error:
            raise sessions.refusal(self.engine, "these inputs", error) from error

    def executed(self) -> ExecutedGraph:
        """The program behind the passes. EngineError for Paddle 3's `.json`: Paddle does not write that one down."""
        model, _ = self._files
        if model.suffix == ".json":
            raise EngineError("Paddle does not tell what its passes made of a .json program; use the .pdmodel form")
        config = self._config()
        with tempfile.TemporaryDirectory(prefix="fullquant-") as folder:
            config.set_optim_cache_dir(folder)
            config.enable_save_optim_model(True)
            with _stderr_discarded():
                _paddle_inference().create_predictor(config)
            written = Path(folder) / "_optimized.pdmodel"
            program = ProgramDesc.FromString((written if written.exists() else model).read_bytes())
        return executed_graph(_executed(op) for block in program.blocks for op in block.ops)


def _executed(op: OpDesc) -> ExecutedOperator:
    precision = next((attr.s for attr in op.attrs if attr.name == "mkldnn_data_type"), "")
    kind = f"{op.type} int8" if precision == "int8" else op.type
    return ExecutedOperator(kind, op.type in _LAYERS, precision == "int8")


def _enable_onednn(config: Any, model: Path) -> None:
    """Switches oneDNN on, with int8 where the file is quantized, and without the kernels that are known to crash."""
    operators = _operators(model)
    config.enable_mkldnn()
    if any(name.startswith(_QUANTIZERS) for name in operators):
        config.enable_mkldnn_int8()
    broken = operators & _BROKEN_IN_ONEDNN
    if broken and model.suffix == ".json":
        names = ", ".join(sorted(broken))
        raise EngineError(f"oneDNN's kernel of {names} corrupts memory; use engine 'paddle', or the .pdmodel form")
    if broken:
        config.set_mkldnn_op(set(operators - broken) | _MADE_BY_PASSES)


def _pixels(model: Path) -> frozenset[str]:
    """The inputs that a program file declares as uint8; Paddle's handles know no type before they have data."""
    try:
        program = load_pir_program(model) if model.suffix == ".json" else load_program(model)
    except ModelError:  # what only Paddle can read
        return frozenset()
    return frozenset(variable.name for variable in program.inputs if variable.dtype == np.uint8)


def _operators(model: Path) -> set[str]:
    """Types of the operators in a program file, without the dialect."""
    if model.suffix == ".json":
        return {op.name.rpartition(".")[2] for op in load_pir(model).ops}
    program = ProgramDesc.FromString(model.read_bytes())
    return {op.type for block in program.blocks for op in block.ops}


def _paddle_inference() -> ModuleType:
    """paddle.inference, imported without its warning about ccache, which only compiling extensions needs."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*ccache.*")
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        import paddle.inference

    module: ModuleType = paddle.inference
    return module


@contextmanager
def _stderr_discarded() -> Iterator[None]:
    """Discards what C++ code writes to stderr: the int8 passes report there, whatever the log level.

    An error of theirs is not lost, it comes as an exception. Without a descriptor 2 nothing is done.
    """
    with _STDERR:
        sys.stderr.flush()
        try:
            kept = os.dup(2)
        except OSError:
            yield
            return
        try:
            sink = os.open(os.devnull, os.O_WRONLY)
            os.dup2(sink, 2)
            os.close(sink)
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
