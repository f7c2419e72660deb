"""PaddleSlim's auto-compression, fully quantized with distillation, in the loop that it trains with.

Runs in PaddleSlim's own environment (README.md). Its loop reads the data loader, and the loader is the gate: nothing of
PaddleSlim is changed, and start-up, calibration and export lie outside the steps.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from gate import Finished, Gate, versions
from images import image_batches

_ENDLESS = 1_000_000


def config(model_dir: Path, full: bool) -> dict[str, object]:
    """The sections of PaddleSlim's example for MobileNetV3 with full quantization."""
    return {
        "Global": {"model_dir": str(model_dir)},
        "Distillation": {"alpha": 1.0, "loss": "soft_label"},
        "QuantAware": {
            "use_pact": False,
            "activation_bits": 8,
            "weight_bits": 8,
            "activation_quantize_type": "moving_average_abs_max",
            "weight_quantize_type": "channel_wise_abs_max",
            "is_full_quantize": full,
            "onnx_format": True,
            "quantize_op_types": ["conv2d", "depthwise_conv2d"],
        },
        "TrainConfig": {
            "epochs": 1,
            "train_iter": _ENDLESS,
            "eval_iter": _ENDLESS,
            "logging_iter": _ENDLESS,
            "learning_rate": 1e-5,
            "optimizer_builder": {"optimizer": {"type": "Adam"}, "weight_decay": 0.0},
        },
    }


def compress(given: argparse.Namespace, gate: Gate, folder: Path) -> None:
    """Calls AutoCompression on a copy of the model, which it overwrites."""
    import paddle
    from paddleslim.auto_compression import AutoCompression
    from paddleslim.common.dataloader import get_feed_vars

    model_dir = folder / "model"
    model_dir.mkdir()
    names = "inference.pdmodel", "inference.pdiparams"
    for name in names:
        shutil.copyfile(given.model / name, model_dir / name)
    paddle.enable_static()
    (name,) = get_feed_vars(str(model_dir), *names)
    batches = [{name: array} for array in image_batches(given.batch, *given.size)]
    asked = iter((True,))

    def loader() -> Iterator[object]:
        # AutoCompression looks at one batch to learn its form; the training loop is the second to ask.
        if next(asked, False):
            yield batches[0]
            return
        yield from gate.batches(batches, versions=versions("paddlepaddle", "paddleslim", "numpy"))
        raise Finished

    AutoCompression(
        model_dir=str(model_dir), model_filename=names[0], params_filename=names[1], save_dir=str(folder / "out"),
        config=config(model_dir, not given.conv_only), train_dataloader=loader, eval_callback=None,
        eval_dataloader=lambda: iter(batches),
        input_shapes={name: [given.batch, *batches[0][name].shape[1:]]},
    ).compress()  # fmt: skip
    raise SystemExit("the training came to an end by itself")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="folder with inference.pdmodel and .pdiparams")
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--size", type=int, nargs=2, required=True, metavar=("H", "W"))
    parser.add_argument("--conv-only", action="store_true", help="is_full_quantize: false, convolutions alone")
    given = parser.parse_args()
    gate = Gate()
    given.model = given.model.resolve()
    with tempfile.TemporaryDirectory(prefix="fullquant-benchmark-") as folder:
        os.chdir(folder)
        try:
            compress(given, gate, Path(folder))
        except Finished:
            return


if __name__ == "__main__":
    main()
