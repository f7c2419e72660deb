"""The small classifier, calibrated and trained by the processes of a world."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fullquant.auto_compression import AutoCompression
from fullquant.auto_compression.from_config import quantize
from fullquant.calibration.calibrator import calibrate_weights, observe_activations, observed_qparams
from fullquant.calibration.observers import EveryObserver
from fullquant.config import load_config
from fullquant.config.optimizer import OptimizerBuilder
from fullquant.distributed import ALONE, World
from fullquant.errors import TrainingError
from fullquant.numerics.qparams import symmetric
from fullquant.placement.place import place
from fullquant.runtime.executor import GraphModule
from fullquant.training.distillation import DistillationTerm
from fullquant.training.optimizers import build_optimizer
from fullquant.training.qat import QatSettings, QatTrainer, Score, weight_parameters
from tests.calibrating import min_max_qparams
from tests.graphs import small_classifier

IMAGES = np.random.default_rng(5).normal(0, 1, (64, 3, 8, 8)).astype(np.float32)
CALIBRATION = np.random.default_rng(6).normal(0, 1, (40, 3, 8, 8)).astype(np.float32)
STEPS, STEP_IMAGES = 12, 16
Arrays = dict[str, npt.NDArray[Any]]


class Interrupted(Exception):
    """The run is broken off."""


def write_all(folder: Path, world: World) -> None:
    """<what>.<rank>.npz for each of the ways to train, and for the observers."""
    ways: dict[str, Arrays] = {"observed": observed(world)}
    for how in ("plain", "undealt", "uneven", "nan"):
        ways[how] = trained(how, world, folder)
    for how in ("broken", "resumed"):
        ways[how] = trained(how, world, folder, checkpoint=folder / "checkpoint.pt")
    for how, arrays in ways.items():
        np.savez(folder / f"{how}.{world.rank}.npz", **arrays)


def trained(how: str, world: World = ALONE, folder: Path | None = None, *, checkpoint: Path | None = None) -> Arrays:
    """Losses of all steps, the steps validated, and the state at the end.

    how: "plain"; "undealt": all processes train on the images of the first; "uneven": process 1 has one batch less in
    each epoch; "nan": it meets a NaN in the second epoch; "broken": all are broken off; "resumed": goes on.
    """
    model = small_classifier()
    placement = place(model)
    teacher = GraphModule(model)
    qparams = min_max_qparams(teacher, model, placement, [CALIBRATION])
    qparams.update(calibrate_weights(model, placement, qparams))
    # The student starts differently in each process: process 0's is the one that counts.
    coarse = {name: symmetric(q.spec, q.scale * (2.0 + world.rank)) for name, q in qparams.items()}
    student = GraphModule(model, placement=placement, qparams=coarse)
    weights, vectors = weight_parameters(student)
    groups = [{"params": weights}, {"params": vectors, "weight_decay": 0.0}]
    settings = QatSettings(
        steps=STEPS, eval_every=4, log_every=1, checkpoint_every=3, scale_rate=1e-3,
        learning_rate=lambda step: 1e-3 * 0.5 * (1 + math.cos(math.pi * step / STEPS)),
    )  # fmt: skip
    trainer = QatTrainer(
        teacher, student, [DistillationTerm("soft_label", "logits", "logits")],
        lambda epoch, start: _batches(how, world, epoch, start),
        build_optimizer(OptimizerBuilder(), groups),
        # Scores rise in process 0 and fall in the other: process 0's are everyone's.
        lambda module: Score(len(trainer.result.scores) * (1.0 - 2.0 * world.rank)), settings,
        checkpoint=checkpoint, digest="d", resume=how == "resumed", world=world,
    )  # fmt: skip
    error = ""
    try:
        trainer.run()
    except (TrainingError, Interrupted) as raised:
        error = str(raised)
    result = trainer.result
    state = {name: tensor.detach().numpy() for name, tensor in student.state_dict().items()}
    losses, validated = [loss for _, loss in result.losses], [step for step, _ in result.scores]
    return {
        "losses": np.array(losses), "validated": np.array(validated), "best": np.array(result.best_step),
        "error": np.array(error), **state,
    }  # fmt: skip


def _batches(how: str, world: World, epoch: int, start: int) -> Iterator[npt.NDArray[np.float32]]:
    order = np.random.default_rng(epoch).permutation(len(IMAGES))
    order = order[(0 if how == "undealt" else world.rank) :: world.size]
    batch = STEP_IMAGES // world.size
    for k in range(start, len(IMAGES) // STEP_IMAGES - (how == "uneven" and world.rank == 1)):
        if how == "broken" and (epoch, k) == (1, 3):
            raise Interrupted("broken off")
        images = IMAGES[order[k * batch : (k + 1) * batch]]
        yield np.full_like(images, np.nan) if (how, epoch, world.rank) == ("nan", 1, 1) else images


def observed(world: World = ALONE) -> Arrays:
    """Scales by every observer, and the histograms, from five batches of which each process has its share."""
    model = small_classifier()
    placement = place(model)
    batches = [CALIBRATION[8 * k : 8 * k + 8] * (k + 1) for k in range(5)]
    with torch.inference_mode():
        observers = observe_activations(GraphModule(model), model, placement, world.own(batches), EveryObserver, world)
    found = {f"counts {name}": observer.histogram.counts for name, observer in observers.items()}
    for kind in ("min_max", "moving_average", "percentile", "mse"):
        for observer in observers.values():
            observer.choose(kind)
        scales = observed_qparams(observers, placement)
        found |= {f"{kind} {name}": np.asarray(q.scale) for name, q in scales.items()}
    return found


def quantized(config: str | Path, save_dir: str | Path, world: World = ALONE) -> dict[str, Any]:
    """quantize(), and the same with a user's loader and callback: what was kept, and the curves."""
    result = quantize(config, save_dir, device="cpu", progress=False)
    curve = [[p.iteration, p.loss, p.top1, p.agreement] for p in result.record.curve]
    own, calls = _with_own_loader(config, f"{save_dir}-own", world)
    return {"kept": result.kept, "curve": curve, "own": own, "calls": calls}


def _with_own_loader(config: str | Path, save_dir: str, world: World) -> tuple[list[Any], int]:
    """AutoCompression with batches and a callback of the user's: (the curve, how often the callback was called)."""
    calls: list[float] = []

    def callback(exe: Any, program: Any, feed_names: Any, fetch_list: Any) -> float:
        (outputs,) = exe.run(program, feed={feed_names[0]: CALIBRATION[:8]}, fetch_list=fetch_list)
        calls.append(float(outputs[:, 0].mean()))
        return calls[-1]

    # Together in the order of one process: calibration looks at some images first, and which ones depends on the order.
    own = [np.split(IMAGES[8 * k : 8 * k + 8], world.size)[world.rank] for k in range(8)]
    settings = load_config(config)
    job = AutoCompression(
        settings.global_section.model_path, [{"x": images} for images in own], save_dir=save_dir, config=settings,
        eval_callback=callback, device="cpu", progress=False,
    )  # fmt: skip
    result = job.compress()
    return [[p.iteration, p.loss, p.top1] for p in result.record.curve], len(calls)
