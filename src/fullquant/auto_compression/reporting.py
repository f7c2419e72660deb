"""What the report says of a run: placement in numbers, every tensor with its reason, files, versions."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir

from fullquant.auto_compression.placed import summary, tensors
from fullquant.auto_compression.stages import QuantizedModel
from fullquant.auto_compression.validation import Validation
from fullquant.config import Config
from fullquant.graph.edit import constant_operand, sole_consumer
from fullquant.graph.layout import INPUT_LAYOUT
from fullquant.readers.onnx_tensors import CONVERTED_FROM
from fullquant.readers.pixels import TAKES_PIXELS
from fullquant.report.machine import machine, package_versions
from fullquant.report.record import (
    CurvePoint,
    FileEntry,
    Record,
    ResultRow,
    digest,
    file_entry,
)
from fullquant.training.qat import QatResult


def curve(result: QatResult | None) -> tuple[CurvePoint, ...]:
    """The loss and the validation scores by step."""
    if result is None:
        return ()
    points: dict[int, dict[str, float]] = {}
    for step, loss in result.losses:
        points.setdefault(step, {})["loss"] = loss
    for step, score in result.scores:
        points.setdefault(step, {})["top1"] = score.metric
        known = {"agreement": score.agreement, "mean_kl": score.mean_kl}
        points[step] |= {name: value for name, value in known.items() if value is not None}
    return tuple(CurvePoint(step, **values) for step, values in sorted(points.items()))


def settings_of(config: Config) -> dict[str, Any]:
    """The configuration as plain values, defaults included."""
    return dataclasses.asdict(config)


def record(
    *, model_dir: Path, model_format: str, inputs: Sequence[Path], config: Config, quantized: QuantizedModel,
    rows: Sequence[ResultRow], outputs: Sequence[Path], result: QatResult | None, kept: str, kept_reason: str,
    seconds: Mapping[str, float], skipped_images: int, notes: Sequence[str],
) -> Record:  # fmt: skip
    """report.json of a run."""
    settings = settings_of(config)
    entries: list[FileEntry] = [file_entry(path) for path in inputs]
    return Record(
        model=str(model_dir), model_format=model_format, config=settings, config_digest=digest(settings),
        versions=package_versions(), machine=machine(), rows=tuple(rows), placement=summary(quantized.placement),
        tensors=tensors(quantized.placement, quantized.qparams), curve=curve(result), inputs=tuple(entries),
        outputs=tuple(file_entry(path) for path in outputs), kept=kept, kept_reason=kept_reason,
        seconds=dict(seconds), skipped_images=skipped_images, notes=tuple(notes),
    )  # fmt: skip


def kept_stage(result: QatResult | None, validation: Validation) -> tuple[str, str]:
    """("PTQ" or "QAT", why): which of the two is written."""
    if result is None:
        return "PTQ", "calibration only"
    start, best = result.scores[0][1], result.best_score
    if result.best_step == 0 or best is None:
        return "PTQ", f"no training step was better than the calibrated start ({start.numbers(validation.name)})"
    after, before = (score.numbers(validation.name) for score in (best, start))
    return "QAT", f"{after} at step {result.best_step}, after {before} calibrated"


_ARITHMETIC = frozenset({"Add", "Sub", "Mul", "Div"})
_UNCHANGED = frozenset({"Cast", "Identity", "Transpose"})

# A runtime that keeps fewer classes than this computes something else than the file.
_COMPUTED = 0.9
# Why ONNX Runtime's integer kernels may differ from the file: whether the processor has VNNI -> cause and remedy.
_KERNELS = {
    "no": "This x86 processor has no VNNI: the int8 kernels add two products in 16 bits, which saturates; "
    "QuantAware.reduce_range: true avoids it.",
    "yes": "Nothing saturates on this processor; the int8 kernels round where the file does not, an addition each of "
    "its two tensors. With scale_grid: short they agree; fullquant verify names the first tensor that differs.",
}


def source_notes(model: ir.Model) -> list[str]:
    """Where the graph that was read differs from the file: the order of axes, the type of its input and floats."""
    found, name = [], model.graph.inputs[0].name
    if model.metadata_props.get(INPUT_LAYOUT) == "NHWC":
        found.append(
            "The float model takes images as [N, height, width, channels] (NHWC); the files written here take "
            f"{name!r} as [N, channels, height, width] (NCHW), without the transposes."
        )
    if TAKES_PIXELS in model.metadata_props:
        found.append(
            "The float model takes images as uint8 and normalises them itself; the files written here take "
            f"{name!r} as float32 with the same numbers, 0 to 255."
        )
    kind = model.metadata_props.get(CONVERTED_FROM)
    if kind:
        found.append(
            f"The float model is in {kind.lower()}; it was read in float32, with the same weights, and is compared in "
            "float32."
        )
    return found


def own_normalisation(model: ir.Model) -> tuple[str, ...]:
    """The operators by which a model, as it was read, normalises its images itself: arithmetic with constants alone.

    () where the images go into a layer as they are.
    """
    found: list[str] = []
    value = model.graph.inputs[0]
    while (node := sole_consumer(value)) is not None:
        if node.op_type in _ARITHMETIC:
            operands = constant_operand(node)
            if operands is None or operands[0] is not value:
                break
            found.append(node.op_type)
        elif node.op_type not in _UNCHANGED:
            break
        value = node.outputs[0]
    return tuple(found)


def normalised_twice(model: ir.Model, source: str | Path) -> str:
    """The remark where own_normalisation finds something, and the preprocessing has a mean and std as well."""
    operators = ", ".join(own_normalisation(model))
    return (
        f"{source} normalises its images itself ({operators} in front of the first layer), and Global.mean and std do "
        "it before: unless the model was trained so, set mean: 0 and std: 1, and scale: 1 or 1/255."
    )


def not_run(save_dir: Path) -> str:
    """The remark where Global.verify_images is 0."""
    return (
        f"The files were not run (verify_images: 0), so nothing is measured: fullquant verify {save_dir} compares them "
        "with the simulation."
    )


def notes(rows: Sequence[ResultRow], vnni: str | None) -> list[str]:
    """Remarks on what the rows show: integer kernels that differ from the file. vnni: of `report.machine`."""
    by_engine = {(r.stage, r.optimised): r for r in rows if r.engine == "onnxruntime"}
    found: list[str] = []
    for (stage, optimised), row in by_engine.items():
        plain = by_engine.get((stage, False))
        if not optimised or plain is None or row.same_as_simulated is None or plain.same_as_simulated is None:
            continue
        if plain.same_as_simulated - row.same_as_simulated > 0.005:
            found.append(
                f"{stage}: ONNX Runtime with optimisations gives another class than the file means on "
                f"{100 * (plain.same_as_simulated - row.same_as_simulated):.1f}% of the images. "
                + _KERNELS.get(vnni or "", "Its int8 kernels round differently on this processor.")
            )
    return [*found, *_openvino_notes(rows, vnni)]


def _openvino_notes(rows: Sequence[ResultRow], vnni: str | None) -> Iterator[str]:
    """Seen on ResNet-20 with zero points of 128, OpenVINO 2026.4: 8% of the classes (decision 0019)."""
    for row in rows:
        if row.engine == "openvino" and row.same_as_simulated is not None and row.same_as_simulated < _COMPUTED:
            cause = (
                _KERNELS["no"]
                if vnni == "no"
                else "Its int8 kernels do not compute every network with zero points other than 0; "
                "QuantAware.target: openvino (--target openvino) writes the form without them, and fullquant verify "
                "names the first tensor that is far away."
            )
            yield (
                f"{row.stage}: OpenVINO gives another class than the file means on "
                f"{100 * (1 - row.same_as_simulated):.1f}% of the images. {cause}"
            )
