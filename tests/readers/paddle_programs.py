"""Writes the programs of paddle_cases.py, with the outputs that PaddlePaddle gives.

Run in a process of its own, from the project's root (PaddlePaddle takes its flags when it is imported):

    FLAGS_enable_pir_api=0 python -m tests.readers.paddle_programs OUT legacy     OUT/<case>/model.pdmodel
    FLAGS_enable_pir_api=1 python -m tests.readers.paddle_programs OUT pir        OUT/<case>/model.json

Every folder also gets data.npz with the input "x" and the output "y".
"""

from __future__ import annotations

import sys
from pathlib import Path

from tests.readers.paddle_cases import CASES, LEGACY_CASES
from tests.readers.paddle_layers import raw_operator


def _repair_legacy_api() -> None:
    """PaddlePaddle 3.3 lost some functions for legacy programs; the operators behind them are still there."""
    import paddle

    functional = paddle.nn.functional

    def binary(kind, **fixed):
        return lambda x, y, **options: raw_operator(
            x, kind, {"X": [x], "Y": [y]}, attrs={**fixed, **_matmul_attrs(options)}
        )

    def unary(kind):
        return lambda x, name=None, **options: raw_operator(x, kind, attrs=options)

    paddle.multiply, paddle.maximum = binary("elementwise_mul", axis=-1), binary("elementwise_max", axis=-1)
    paddle.minimum, paddle.bmm = binary("elementwise_min", axis=-1), binary("bmm")
    paddle.matmul = binary("matmul_v2", trans_x=False, trans_y=False)
    for name in ("abs", "log", "exp", "sqrt", "rsqrt", "square", "floor", "ceil"):
        setattr(paddle, name, unary(name))
    functional.sigmoid, functional.tanh = unary("sigmoid"), unary("tanh")
    functional.gelu, functional.softplus = unary("gelu"), unary("softplus")
    paddle.sum = lambda x, axis: raw_operator(x, "reduce_sum", attrs={"dim": [axis], "keep_dim": False})
    paddle.roll = lambda x, shifts, axis=(): raw_operator(
        x, "roll", attrs={"shifts": [shifts] if isinstance(shifts, int) else shifts, "axis": list(axis)}
    )
    paddle.argmax = lambda x, axis=None, keepdim=False, dtype="int64": raw_operator(
        x,
        "arg_max",
        attrs={
            "axis": 0 if axis is None else axis,
            "flatten": axis is None,
            "keepdims": keepdim,
            "dtype": {"int32": 2, "int64": 3}[dtype],
        },
        dtype=dtype,
    )


def _matmul_attrs(options):
    return {name.replace("transpose_", "trans_"): value for name, value in options.items()}


_SIZES = {0: 2, 1: 6, 2: 9, 3: 12}


def build_all(out: Path, pir: bool) -> None:
    """Writes every case into its folder."""
    import numpy as np
    import paddle

    paddle.enable_static()
    if not pir:
        _repair_legacy_api()
    executor = paddle.static.Executor(paddle.CPUPlace())
    cases = CASES if pir else {**CASES, **LEGACY_CASES}
    for index, (name, (shape, build)) in enumerate(cases.items()):
        main, startup = paddle.static.Program(), paddle.static.Program()
        paddle.seed(index)
        with paddle.static.scope_guard(paddle.static.Scope()), paddle.static.program_guard(main, startup):
            x = paddle.static.data("x", list(shape), "float32")
            y = build(x)
            executor.run(startup)
            folder = out / name
            folder.mkdir(parents=True)
            sizes = [size if size > 0 else _SIZES[axis] for axis, size in enumerate(shape)]
            array = np.random.default_rng(index).uniform(-2, 2, sizes).astype(np.float32)
            (result,) = executor.run(main, feed={"x": array}, fetch_list=[y])
            paddle.static.save_inference_model(str(folder / "model"), [x], [y], executor, program=main)
            np.savez(folder / "data.npz", x=array, y=result)


if __name__ == "__main__":
    build_all(Path(sys.argv[1]), sys.argv[2] == "pir")
