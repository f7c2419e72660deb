"""Paddle's own part in tests/writers/test_pir.py, in a process of its own: PaddlePaddle takes its flags at import.

FLAGS_enable_pir_api=0 python -m tests.writers.paddle_translator translate FOLDER
    every FOLDER/*.pdmodel becomes *.translated.json, by paddle.pir.translate_to_pir
python -m tests.writers.paddle_translator load PREFIX
    runs PREFIX.json on PREFIX.npy by paddle.jit.load and paddle.static.load_inference_model: PREFIX.out.npz
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np


def translate(folder: Path) -> None:
    import paddle
    from paddle.base import core

    for path in sorted(folder.glob("*.pdmodel")):
        program = paddle.pir.translate_to_pir(core.ProgramDesc(path.read_bytes()))
        core.serialize_pir_program(program, str(path.with_suffix(".translated.json")))


def load(prefix: str) -> None:
    import paddle

    x = np.load(f"{prefix}.npy")
    layer = paddle.jit.load(prefix)
    layer.eval()
    jit = layer(paddle.to_tensor(x)).numpy()
    paddle.enable_static()
    executor = paddle.static.Executor(paddle.CPUPlace())
    program, feeds, fetches = paddle.static.load_inference_model(prefix, executor)
    static = executor.run(program, feed={feeds[0]: x}, fetch_list=fetches)[0]
    np.savez(f"{prefix}.out.npz", jit=jit, static=static, feeds=feeds)


if __name__ == "__main__":
    if sys.argv[1] == "translate":
        translate(Path(sys.argv[2]))
    else:
        load(sys.argv[2])
