"""run.py and eval.py, with the flags that users of PaddleSlim's examples know."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fullquant.cli.console import device, one_line_errors, output, run_command_line, show_log

DEMO_SAVE_DIR = "./output/textline_demo"
_SAVE_DIR = "./output"

ConfigPath = Annotated[
    str | None,
    typer.Option(
        "--config_path", "--config-path", metavar="FILE", help="YAML file. Not given: the built-in text-line example."
    ),
]


def run_script(default_config: Path) -> None:
    """The command line of run.py. default_config: what is run without --config_path."""

    def run(
        config_path: ConfigPath = None,
        save_dir: Annotated[
            str | None,
            typer.Option(
                "--save_dir",
                "--save-dir",
                metavar="DIR",
                help=f"Where the integer model goes. [default: {_SAVE_DIR}; the example: {DEMO_SAVE_DIR}]",
                show_default=False,
            ),
        ] = None,
        total_images: Annotated[
            int | None,
            typer.Option(
                "--total_images",
                "--total-images",
                min=1,
                help="Training images that a CosineAnnealingDecay spans: T_max = total_images / batch_size. "
                "Not given: T_max as in the file, else the steps of the run.",
            ),
        ] = None,
        verify_images: Annotated[
            int | None,
            typer.Option(
                "--verify_images",
                "--verify-images",
                min=0,
                help="On how many images, at most, the written files are run in every runtime; 0: they are not run. "
                "[default: verify_images of the file, else 2000]",
                show_default=False,
            ),
        ] = None,
        devices: Annotated[
            str | None,
            typer.Option("--devices", callback=device, help="gpu or cpu. [default: gpu where there is one]"),
        ] = None,
    ) -> None:
        """Quantizes a model fully to int8: calibration, quantization-aware training with distillation, verification.

        Example: python run.py --config_path configs/mobilenetv3_large_qat_dis.yaml --save_dir ./save_quant_mobilev3/
        """
        from fullquant.distributed import joined

        show_log()
        with one_line_errors(), joined(devices):
            from fullquant.cli.job import compress

            compress(
                config_path or default_config,
                save_dir or (_SAVE_DIR if config_path else DEMO_SAVE_DIR),
                total_images=total_images,
                verify_images=verify_images,
                devices=devices,
            )

    _command(run)


def eval_script(default_config: Path) -> None:
    """The command line of eval.py. default_config: where the images are without --config_path."""

    def evaluate(
        config_path: ConfigPath = None,
        model_dir: Annotated[
            str | None,
            typer.Option(
                "--model_dir",
                "--model-dir",
                metavar="DIR",
                help="Model folder or file, float or int8, Paddle or ONNX. Not given: the one of the file.",
            ),
        ] = None,
        model_filename: Annotated[
            str | None,
            typer.Option("--model_filename", "--model-filename", help="Its program file; found where not given."),
        ] = None,
        params_filename: Annotated[
            str | None,
            typer.Option("--params_filename", "--params-filename", help="Its parameter file; found where not given."),
        ] = None,
        engine: Annotated[
            str,
            typer.Option(help="onnxruntime, paddle, paddle_onednn, openvino; of int8 models also simulated, integer."),
        ] = "onnxruntime",
        optimize: Annotated[
            bool, typer.Option("--optimize/--no-optimize", help="With the graph optimisations of the engine.")
        ] = False,
        total_images: Annotated[
            int | None,
            typer.Option(
                "--total_images",
                "--total-images",
                min=1,
                help="How many validation images are evaluated, spread evenly over their list and the same each time. "
                "Not given: all.",
            ),
        ] = None,
    ) -> None:
        """Measures the accuracy of a model on the validation images of a configuration.

        The last line of the output is "Eval Top1: 0.xxxx".

        Example: python eval.py --config_path configs/resnet20_cifar10.yaml --model_dir output/inference.pdmodel
        """
        from fullquant.cli.job import evaluate_one

        show_log()
        with one_line_errors():
            if model_dir is None and (model_filename or params_filename):
                raise typer.BadParameter(
                    "--model_filename and --params_filename name files in --model_dir: give it too"
                )
            top1 = evaluate_one(
                output(),
                config_path or default_config,
                model_dir,
                model_filename=model_filename,
                params_filename=params_filename,
                engine=engine,
                optimize=optimize,
                total_images=total_images,
            )
        typer.echo(f"Eval Top1: {top1:.4f}")

    _command(evaluate)


def _command(function: object) -> None:
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command()(function)  # type: ignore[type-var]
    run_command_line(app)
