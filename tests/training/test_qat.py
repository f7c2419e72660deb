"""The training loop: it learns, keeps the best, survives being killed, and stops on nonsense."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from fullquant.calibration.calibrator import calibrate_weights
from fullquant.errors import TrainingError
from fullquant.numerics.qparams import symmetric
from fullquant.placement.place import place
from fullquant.runtime.executor import GraphModule
from fullquant.training.checkpoint import load_checkpoint, save_checkpoint
from fullquant.training.distillation import DistillationTerm
from fullquant.training.qat import QatSettings, QatTrainer, Score, scale_parameters, scale_rate, weight_parameters
from fullquant.training.teacher_cache import TeacherCache
from tests.calibrating import min_max_qparams
from tests.graphs import small_classifier

IMAGES = np.random.default_rng(5).normal(0, 1, (64, 3, 8, 8)).astype(np.float32)
BATCH = 8


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _pair(spoil: float = 4.0) -> tuple[GraphModule, GraphModule]:
    """A teacher, and a student whose weights and steps are too coarse to be good."""
    model = small_classifier()
    placement = place(model)
    teacher = GraphModule(model)
    qparams = min_max_qparams(teacher, model, placement, [IMAGES])
    qparams.update(calibrate_weights(model, placement, qparams))
    coarse = {name: symmetric(q.spec, q.scale * spoil) for name, q in qparams.items()}
    return teacher, GraphModule(model, placement=placement, qparams=coarse)


def _batches(epoch: int, start: int) -> Iterator[npt.NDArray[np.float32]]:
    order = np.random.default_rng(epoch).permutation(len(IMAGES))
    for k in range(start, len(IMAGES) // BATCH):
        yield IMAGES[order[k * BATCH : (k + 1) * BATCH]]


def _distance(teacher: GraphModule, student: GraphModule) -> float:
    with torch.no_grad():
        x = torch.from_numpy(IMAGES)
        _, ours = student(x, keep=["logits"])
        _, theirs = teacher(x, keep=["logits"])
    return float(((ours["logits"] - theirs["logits"]) ** 2).mean())


def _trainer(teacher: GraphModule, student: GraphModule, **options: Any) -> QatTrainer:
    """steps, rate, batches, evaluate, settings (of QatSettings) and what QatTrainer itself takes."""
    steps, rate = options.pop("steps", 48), options.pop("rate", 3e-3)
    settings = QatSettings(
        steps=steps,
        eval_every=8,
        log_every=4,
        learning_rate=lambda step: rate * 0.5 * (1 + math.cos(math.pi * step / steps)),
        checkpoint_every=5,
        **{"scale_rate": 3e-2, **options.pop("settings", {})},
    )
    weights, vectors = weight_parameters(student)
    return QatTrainer(
        teacher,
        student,
        [DistillationTerm("l2", "logits", "logits")],
        options.pop("batches", _batches),
        torch.optim.Adam(weights + vectors, lr=rate),
        options.pop("evaluate", lambda module: Score(-_distance(teacher, module))),
        settings,
        **options,
    )


def test_training_brings_the_student_nearer_to_the_teacher() -> None:
    teacher, student = _pair()
    before = _distance(teacher, student)
    result = _trainer(teacher, student).run()
    assert _distance(teacher, student) < 0.5 * before
    assert result.best_step > 0
    assert result.steps_done == 48
    assert result.best_score is not None
    assert _distance(teacher, student) == pytest.approx(-result.best_score.metric)


def test_scales_are_learned_and_can_be_held() -> None:
    teacher, student = _pair()
    start = [p.detach().clone() for p in scale_parameters(student)]
    _trainer(teacher, student).run()
    assert any(not torch.equal(a, b) for a, b in zip(start, scale_parameters(student), strict=True))
    teacher, student = _pair()
    _trainer(teacher, student, steps=8, settings={"learn_scales": False}).run()
    assert all(torch.equal(a, b) for a, b in zip(start, scale_parameters(student), strict=True))


def test_the_scale_of_the_images_stays_as_it_was_calibrated() -> None:
    teacher, student = _pair()
    quantizer = student.quantizer(student.input_name)
    assert quantizer is not None
    before = quantizer.log_scale.detach().clone()
    _trainer(teacher, student, steps=8).run()
    assert torch.equal(quantizer.log_scale, before)


def test_the_rate_of_the_scales_is_as_given_or_follows_that_of_the_weights() -> None:
    assert scale_rate(None, 2e-6) == pytest.approx(2e-4)
    assert scale_rate(None, 0.1) == 1e-2
    assert scale_rate(0.05, 2e-6) == 0.05
    moved = []
    for rate in (1e-3, 3e-2):
        teacher, student = _pair()
        start = [p.detach().clone() for p in scale_parameters(student)]
        _trainer(teacher, student, steps=32, settings={"scale_rate": rate}).run()
        trained = scale_parameters(student)
        moved.append(max(float((a - b).detach().abs().max()) for a, b in zip(start, trained, strict=True)))
    assert moved[0] <= 32e-3 < moved[1]


def test_pact_decay_shrinks_the_clips() -> None:
    sums = []
    for decay in (0.0, 10.0):
        teacher, student = _pair()
        _trainer(teacher, student, steps=8, rate=0.0, evaluate=_rising(), settings={"clip_decay": decay}).run()
        sums.append(sum(float(q.log_scale.detach()) for q in student.fake_quantizers() if q.spec.axis is None))
    assert sums[1] < sums[0]


def _rising() -> Any:
    """A score that grows at each call, so that the last state is kept."""
    calls = iter(range(1000))
    return lambda student: Score(float(next(calls)))


def test_a_worse_student_never_replaces_its_start() -> None:
    teacher, student = _pair(spoil=1.0)
    start = {k: v.clone() for k, v in student.state_dict().items()}
    result = _trainer(teacher, student, steps=16, rate=0.5).run()
    assert result.best_step == 0
    for key, value in student.state_dict().items():
        assert torch.equal(value, start[key])


def test_target_metric_stops_the_run() -> None:
    teacher, student = _pair()
    result = _trainer(teacher, student, evaluate=_rising(), settings={"target": 2.0}).run()
    assert result.stopped_by == "target_metric"
    assert result.steps_done == 16


def test_a_non_finite_loss_stops_with_the_best_state_kept() -> None:
    teacher, student = _pair()

    def poisoned(epoch: int, start: int) -> Iterator[npt.NDArray[np.float32]]:
        for k, images in enumerate(_batches(epoch, start)):
            yield np.full_like(images, np.nan) if epoch == 1 and k == 4 else images

    trainer = _trainer(teacher, student, batches=poisoned, evaluate=_rising())
    with pytest.raises(TrainingError, match=r"step 13 .*learning_rate"):
        trainer.run()
    assert trainer.result.best_step == 8
    assert math.isfinite(_distance(teacher, student))


def test_a_killed_run_goes_on_and_ends_as_if_it_had_not_been_killed(tmp_path: Path) -> None:
    teacher, straight = _pair()
    _trainer(teacher, straight).run()

    class Killed(Exception):
        pass

    def dying(epoch: int, start: int) -> Iterator[npt.NDArray[np.float32]]:
        for k, images in enumerate(_batches(epoch, start)):
            if epoch == 2 and start + k == 5:
                raise Killed
            yield images

    path = tmp_path / "state.pt"
    teacher, student = _pair()
    with pytest.raises(Killed):
        _trainer(teacher, student, batches=dying, checkpoint=path, digest="d").run()
    assert path.exists()
    _, again = _pair()
    _trainer(teacher, again, checkpoint=path, digest="d", resume=True).run()
    assert not path.exists()
    for key, value in again.state_dict().items():
        torch.testing.assert_close(value, straight.state_dict()[key], rtol=0, atol=0)


def test_a_checkpoint_of_other_settings_is_not_loaded(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    save_checkpoint(path, {"a": torch.ones(2)}, "mine")
    assert load_checkpoint(path, "other") is None
    assert load_checkpoint(tmp_path / "none.pt", "mine") is None
    loaded = load_checkpoint(path, "mine")
    assert loaded is not None
    assert torch.equal(loaded["a"], torch.ones(2))


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(TrainingError, match=r"state\.pt.*delete it"):
        load_checkpoint(path, "d")


def test_a_cache_of_the_teacher_changes_no_loss(tmp_path: Path) -> None:
    found = []
    for cached in (False, True):
        cache = TeacherCache(tmp_path / "cache", 1e6) if cached else None
        trainer = _trainer(*_pair(), steps=24, cache=cache)
        losses = trainer.run().losses
        found.append(losses)
        if cache is not None:  # three epochs of the same 64 images
            assert (cache.misses, cache.hits) == (64, 128)
            assert not (tmp_path / "cache").exists()
    for (step, plain), (same_step, with_cache) in zip(*found, strict=True):
        assert step == same_step
        assert with_cache == pytest.approx(plain, rel=1e-4)


def test_no_training_batch_is_an_error() -> None:
    teacher, student = _pair()
    with pytest.raises(TrainingError, match="no batch"):
        _trainer(teacher, student, batches=lambda epoch, start: iter(())).run()


def test_learned_weights_reach_the_graph() -> None:
    teacher, student = _pair()
    model = small_classifier()
    _trainer(teacher, student, steps=8, evaluate=_rising()).run()
    student.store_weights(model)
    value = model.graph.initializers["w5"].const_value
    assert value is not None
    np.testing.assert_array_equal(value.numpy(), student.parameter("w5").detach().numpy())
    assert not np.array_equal(value.numpy(), teacher.parameter("w5").detach().numpy())


def test_the_rank_decides_and_not_the_metric() -> None:
    teacher, student = _pair()
    scores = iter([Score(0.9, (1.0, 5.0)), Score(0.99, (0.0, 9.0)), Score(0.8, (1.0, 6.0))])
    result = _trainer(teacher, student, steps=16, evaluate=lambda module: next(scores)).run()
    assert result.best_step == 16
    assert result.best_score == Score(0.8, (1.0, 6.0))


def test_a_validation_settles_scales_for_itself_alone() -> None:
    """What is judged and kept has the settled scales; training goes on as it would without validations."""
    teacher, student = _pair()
    _, other = _pair()
    owner = next(q for q in scale_parameters(student))
    name = next(key for key, value in student.named_parameters() if value is owner)
    judged: list[float] = []

    def settle(module: GraphModule) -> None:
        dict(module.named_parameters())[name].data.fill_(3.0)

    def evaluate(module: GraphModule) -> Score:
        judged.append(float(dict(module.named_parameters())[name].detach()))
        return Score(float(len(judged)), (float(len(judged)),))

    trainer = _trainer(teacher, student, evaluate=evaluate, settle=settle, steps=16)
    kept: list[float] = []
    trainer._restore_best = lambda: kept.append(float(trainer._best[name]))  # type: ignore[method-assign]
    trainer.run()
    assert judged == [3.0] * len(judged)
    assert kept == [3.0]
    plain = _trainer(teacher, other, steps=16)
    plain._restore_best = lambda: None  # type: ignore[method-assign]
    plain.run()
    for (key, mine), (_, theirs) in zip(student.named_parameters(), other.named_parameters(), strict=True):
        assert torch.equal(mine, theirs), key
