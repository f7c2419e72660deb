"""Each section's own rules: what its keys turn into."""

from __future__ import annotations

from typing import Any

import pytest

from fullquant.config import (
    Augment,
    Calibration,
    Distillation,
    DistillationTerm,
    Global,
    ObserverSettings,
    QuantAware,
    QuantPost,
    TrainConfig,
    target_of_hardware,
)
from fullquant.config.optimizer import ClipGradByGlobalNorm, OptimizerBuilder
from fullquant.config.settings import Settings, convert, describe
from fullquant.errors import ConfigError


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        (Global, {"batch_size": 0}, "Global.batch_size: 0 must be > 0"),
        (Global, {"batch_size": 32.0}, "Global.batch_size: 32.0 is not an integer"),
        (Global, {"img_size": [1, 2, 3]}, "Global.img_size: [1, 2, 3] is not a list of 2, each an integer"),
        (Global, {"img_size": 384}, "Global.resize_size: 256 is below img_size (384, 384)"),
        (Global, {"img_size": 64, "resize_size": [64, 32]}, "is below img_size"),
        (Global, {"img_size": -1}, "Global.img_size"),
        (Global, {"resize_size": "big"}, "Global.resize_size: 'big' is not an integer or a list of 2, each an integer"),
        (Global, {"mean": [0.5, 0.5]}, "Global.mean: [0.5, 0.5] must have 3 numbers"),
        (Global, {"mean": [0.5, 0.5, 0.5], "channel_order": "grey"}, "must have 1 number, the images are grey"),
        (Global, {"std": [0, 1, 1]}, "Global.std: [0.0, 1.0, 1.0] must be > 0"),
        (Global, {"std": [float("nan"), 1, 1]}, "Global.std: nan is not a finite number"),
        (Global, {"scale": "1/0"}, "Global.scale: '1/0' is not a number"),
        (Global, {"scale": -1}, "Global.scale: -1.0 must be > 0"),
        (Global, {"channel_order": "rgba"}, "Global.channel_order: 'rgba' is not one of rgb, bgr, grey"),
        (Global, {"keep_ratio_pad": True}, "add augment: {crop: none, flip: false}"),
        (Global, {"augment": {"crop": "half"}}, "Global.augment.crop: 'half' is not one of random_resized, none"),
        (Global, {"augment": {"area": [0.5, 0.1]}}, "Global.augment.area"),
        (Global, {"augment": {"ratio": [0, 1]}}, "Global.augment.ratio"),
        (Global, {"augment": {"versions": 0}}, "Global.augment.versions: 0 must be > 0"),
        (Distillation, {"teacher_cache_gb": -1}, "Distillation.teacher_cache_gb: -1.0 must be > 0"),
        (Global, {"augment": 3}, "Global.augment: 3 is not a mapping"),
        (Global, {"input_shape": [3, 48, 192]}, "Global.input_shape: [3, 48, 192] is not a list of 4"),
        (Global, {"input_shape": [-1, -1, 48, 192]}, "-1 where free"),
        (Global, {"workers": -1}, "Global.workers"),
        (Global, {"fast_decode": True}, "Global.fast_decode: true is not one of never, training, always"),
        (Global, {"seed": -1}, "Global.seed"),
        (Distillation, {"alpha": 0}, "Distillation.alpha: [0.0] must be > 0"),
        (Distillation, {"loss": "l1"}, "Distillation.loss: 'l1' is not one of l2, soft_label"),
        (Distillation, {"loss": "fsp"}, "Distillation.loss: fsp is not available"),
        (Distillation, {"loss": []}, "must name at least one loss"),
        (Distillation, {"loss": ["l2", "l2"]}, "2 values for 1 groups of nodes"),
        (Distillation, {"node": [["a"], ["b"]], "alpha": [1, 2, 3]}, "Distillation.alpha: 3 values for 2 groups"),
        (Distillation, {"node": [["a"], []]}, "an inner list is empty"),
        (Distillation, {"teacher_model_filename": "m"}, "needs teacher_model_dir"),
        (QuantAware, {"quantize_op_types": ["conv2"]}, "unknown operator 'conv2'; did you mean 'conv2d'?"),
        (QuantAware, {"quantize_op_types": ["zzzzzz"]}, "see docs/configuration.md"),
        (QuantAware, {"moving_rate": 1.0}, "QuantAware.moving_rate"),
        (QuantAware, {"scale_learning_rate": 0.0}, "QuantAware.scale_learning_rate"),
        (QuantAware, {"target": "npu"}, "QuantAware.target: 'npu' is not one of paddle_lite, verisilicon_timvx"),
        (QuantAware, {"for_tensorrt": True, "target": "openvino"}, "contradicts target openvino"),
        (QuantAware, {"for_tensorrt": True, "weight_quantize_type": "abs_max"}, "weight_quantize_type channel_wise"),
        (QuantAware, {"for_tensorrt": True, "activation_quantize_type": "abs_max"}, "activation_quantize_type must be"),
        (QuantAware, {"calibration": {"observer": "kl"}}, "QuantAware.calibration.observer: 'kl' is not one of"),
        (QuantAware, {"calibration": {"calibration_images": 0}}, "calibration_images: 0 must be > 0"),
        (QuantAware, {"calibration": {"percentile": 99.9}}, "must be a share"),
        (QuantAware, {"window_size": 5}, "QuantAware.window_size: 5 is not available (only 10000)"),
        (QuantPost, {"hist_percent": 99.9}, "must be a share"),
        (QuantPost, {"batch_nums": 0}, "QuantPost.batch_nums"),
        (QuantPost, {"batch_size": 0}, "QuantPost.batch_size"),
        (QuantPost, {"use_pact": True}, "QuantPost: unknown key 'use_pact'"),
        (QuantPost, {"activation_quantize_type": "kl"}, "QuantPost.activation_quantize_type"),
        (QuantPost, {"not_quant_pattern": ["conv", ""]}, "not_quant_pattern: '' is part of every name; write []"),
        (Global, {"img_size": "224"}, "Global.img_size: '224' is neither an integer nor a list [height, width]"),
        (Global, {"verify_images": -1}, "Global.verify_images: -1 must be >= 0"),
        (Global, {"seed": 2**63}, "must be >= 0 and below 2^63"),
        (Global, {"val_list": ""}, "Global.val_list: '' names nothing"),
        (TrainConfig, {"learning_rate": {"type": ["a"]}}, "TrainConfig.learning_rate: type ['a'] is not a name"),
        (TrainConfig, {"optimizer_builder": {"optimizer": {"type": {"a": 1}}}}, "type {'a': 1} is not a name"),
        (TrainConfig, {"optimizer_builder": {"optimizer": {"type": "NAdam", "beta2": 1}}}, "NAdam.beta2: 1.0 must be"),
        (TrainConfig, {"epochs": 0}, "TrainConfig.epochs: 0 must be > 0"),
        (TrainConfig, {"epochs": True}, "TrainConfig.epochs: true is not an integer"),
        (TrainConfig, {"origin_metric": "74%"}, "TrainConfig.origin_metric: '74%' is not a number"),
        (TrainConfig, {"learning_rate": "fast"}, "TrainConfig.learning_rate: 'fast' is neither a number"),
        (TrainConfig, {"learning_rate": {"type": "Cosine"}}, "TrainConfig.learning_rate: unknown type 'Cosine'"),
        (TrainConfig, {"optimizer_builder": {"optimizer": {"type": "sgd"}}}, "did you mean 'SGD'"),
        (
            TrainConfig,
            {"grad_clip": 1.0, "optimizer_builder": {"grad_clip": {"type": "ClipGradByNorm", "clip_norm": 1}}},
            "keep one",
        ),
    ],
)
def test_mistakes(section: type[Settings], values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        section.from_mapping(values)
    assert message in str(caught.value)
    assert section.SECTION in str(caught.value)


def test_built_in_python_checks_the_same() -> None:
    with pytest.raises(ConfigError, match=r"Global\.batch_size: '32' is not an integer"):
        Global(batch_size="32")  # type: ignore[arg-type]
    assert Global(mean=[1, 2, 3]).mean == (1.0, 2.0, 3.0)  # type: ignore[arg-type]
    assert TrainConfig(learning_rate=1).learning_rate == 1.0


def test_global_values() -> None:
    written = {
        "input_name": ["inputs"],
        "img_size": [48, 192],
        "resize_size": None,
        "scale": "1.0/255.0",
        "augment": False,
        "model_dir": "m",
        "channel_order": "grey",
        "mean": 0.5,
        "std": 0.5,
        "input_shape": [-1, 1, 48, 192],
    }
    section = Global.from_mapping(written)
    assert section.input_name == "inputs"
    assert section.img_size == (48, 192)
    assert section.scale == 1 / 255
    assert section.augment == Augment("none", False)
    assert Global.from_mapping({"augment": True}).augment == Augment()
    assert (section.mean, section.std) == ((0.5,), (0.5,))
    assert section.input_shape == (-1, 1, 48, 192)
    other = section.with_model("n", "model.pdmodel")
    assert (other.model_dir, other.model_filename, other.img_size) == ("n", "model.pdmodel", (48, 192))
    with pytest.raises(ConfigError, match=r"Global\.data_dir: must be given"):
        section.need("data_dir")


def test_none_as_the_tutorial_writes_it() -> None:
    section = QuantPost.from_mapping({"batch_nums": "None", "recon_level": "None", "skip_tensor_list": "None"})
    assert section.batch_nums is None
    assert Distillation.from_mapping({"node": "None", "teacher_model_filename": "None"}).node == ()


class TestDistillation:
    def test_default_node(self) -> None:
        (term,) = Distillation(loss=("soft_label",), alpha=(0.5,)).terms({"x"}, "logits", "teacher_logits")
        assert term == DistillationTerm("teacher_logits", "logits", "soft_label", 0.5)

    @pytest.mark.parametrize("node", ["a", ["a"], [["a"]]])
    def test_one_node(self, node: Any) -> None:
        section = Distillation.from_mapping({"node": node})
        assert section.terms({"a"}, "logits", "logits") == (DistillationTerm("a", "a", "l2", 1.0),)

    def test_list_shares_loss_and_alpha(self) -> None:
        section = Distillation.from_mapping({"node": ["a", "b"], "alpha": 2})
        assert [(t.teacher, t.student, t.alpha) for t in section.terms({"a", "b"}, "", "")] == [
            ("a", "a", 2.0),
            ("b", "b", 2.0),
        ]

    @pytest.mark.parametrize("node", [["a", "b"], [["a"], ["b"]]])
    def test_groups_have_their_own(self, node: Any) -> None:
        section = Distillation.from_mapping({"node": node, "loss": ["l2", "soft_label"], "alpha": [1, 2]})
        assert section.terms({"a", "b"}, "", "") == (
            DistillationTerm("a", "a", "l2", 1.0),
            DistillationTerm("b", "b", "soft_label", 2.0),
        )

    def test_pairs_for_a_foreign_teacher(self) -> None:
        section = Distillation.from_mapping({"node": ["teacher_t1", "s1", "teacher_t2", "s2"]})
        assert [(t.teacher, t.student) for t in section.terms({"s1", "s2"}, "", "")] == [("t1", "s1"), ("t2", "s2")]

    def test_a_variable_that_is_called_teacher(self) -> None:
        section = Distillation.from_mapping({"node": ["teacher_t1", "s1"]})
        assert [t.teacher for t in section.terms({"teacher_t1", "s1"}, "", "")] == ["teacher_t1", "s1"]

    @pytest.mark.parametrize("node", [["relu_9"], ["relu_9", "s1"], ["teacher_t1"]])
    def test_unknown_names(self, node: list[str]) -> None:
        with pytest.raises(ConfigError, match=r"Distillation\.node: '.*' is no variable of the model"):
            Distillation.from_mapping({"node": node}).terms({"s1"}, "", "")


class TestQuantization:
    def test_defaults_make_everything_int8(self) -> None:
        section = QuantAware()
        assert section.op_types is None
        assert section.weight_granularity == "per_channel"
        assert section.target_for() == "paddle_lite"
        assert section.observer == ObserverSettings("auto", 512, 0.9999, 0.9, "moving_average")
        assert section.observer.candidates == ("moving_average", "fisher", "min_max", "percentile", "mse")

    @pytest.mark.parametrize("section", [QuantAware, QuantPost])
    def test_weight_rounding(self, section: type[QuantAware | QuantPost]) -> None:
        assert section.from_mapping({}).observer.compensate
        assert not section.from_mapping({"weight_rounding": "nearest"}).observer.compensate

    def test_literal_operators(self) -> None:
        section = QuantAware.from_mapping({"is_full_quantize": False, "quantize_op_types": ["conv2d", "Gemm"]})
        assert section.op_types == ("conv2d", "Gemm")

    def test_tensorrt(self) -> None:
        section = QuantAware(for_tensorrt=True, quantize_op_types=("conv2d",))
        assert section.target_for("cpu") == "tensorrt"
        assert section.op_types is not None
        assert "pool2d" in section.op_types

    @pytest.mark.parametrize("kind", ["abs_max", "range_abs_max", "moving_average_abs_max"])
    def test_weights_per_tensor(self, kind: str) -> None:
        assert QuantPost.from_mapping({"weight_quantize_type": kind}).weight_granularity == "per_tensor"

    @pytest.mark.parametrize(
        ("kind", "observer"),
        [("abs_max", "min_max"), ("range_abs_max", "min_max"), ("moving_average_abs_max", "moving_average")],
    )
    def test_activation_type_is_an_observer(self, kind: str, observer: str) -> None:
        settings = {"activation_quantize_type": kind, "moving_rate": 0.5}
        assert QuantAware.from_mapping(settings).observer.candidates[0] == observer
        alone = QuantAware.from_mapping({**settings, "calibration": {"observer": None}}).observer
        assert alone == ObserverSettings(observer, 512, 0.9999, 0.5, observer)  # type: ignore[arg-type]
        assert alone.candidates == (observer,)

    def test_calibration_beats_the_activation_type(self) -> None:
        section = QuantAware(calibration=Calibration("percentile", 64, 0.99), activation_quantize_type="abs_max")
        assert section.observer == ObserverSettings("percentile", 64, 0.99, 0.9, "min_max")

    @pytest.mark.parametrize(
        ("algo", "observer"),
        [("hist", "percentile"), ("mse", "mse"), ("abs_max", "min_max"), ("min_max", "min_max"), ("auto", "auto")],
    )
    def test_algorithms(self, algo: str, observer: str) -> None:
        section = QuantPost.from_mapping({"algo": algo, "batch_size": 8, "batch_nums": 4, "hist_percent": 0.99})
        assert section.observer == ObserverSettings(observer, 32, 0.99, 0.9)  # type: ignore[arg-type]
        assert QuantPost().observer == ObserverSettings("auto", 512, 0.999, 0.9)

    def test_a_correction_is_tried_where_it_is_judged(self) -> None:
        """With an observer that is named, PaddleSlim's default: none."""
        assert QuantPost().corrects
        assert not QuantPost(algo="hist").corrects
        assert QuantPost(algo="hist", bias_correction=True).corrects
        assert not QuantPost(bias_correction=False).corrects

    def test_hardware(self) -> None:
        assert target_of_hardware(None) == "paddle_lite"
        assert target_of_hardware("gpu") == "tensorrt"
        assert target_of_hardware("cpu") == "paddle_inference"
        assert target_of_hardware("RK3288") == "paddle_lite"
        assert target_of_hardware("verisilicon_timvx") == "verisilicon_timvx"
        with pytest.raises(ConfigError, match="unknown hardware 'tpu'"):
            target_of_hardware("tpu")

    @pytest.mark.parametrize("section", [QuantAware, QuantPost])
    def test_a_reduced_range_has_no_meaning_for_onednn(self, section: type[QuantAware | QuantPost]) -> None:
        """However the target is named; decision 0024."""
        with pytest.raises(
            ConfigError, match=rf"{section.SECTION}\.reduce_range: .*paddle_inference.*remove it"
        ) as said:
            section.from_mapping({"target": "paddle_inference", "reduce_range": True})
        assert "\n" not in str(said.value)
        for hardware in ("cpu", "paddle_inference"):
            with pytest.raises(ConfigError, match="reduce_range"):
                section(reduce_range=True).target_for(hardware)
        assert section(reduce_range=True).target_for("gpu") == "tensorrt"
        assert section(target="paddle_inference").target_for() == "paddle_inference"


class TestTrainConfig:
    @pytest.mark.parametrize(
        ("epochs", "train_iter", "total"),
        [(None, None, 1000), (2, None, 20), (None, 5000, 5000), (2, 15, 15), (2, 50, 20)],
    )
    def test_total_iterations(self, epochs: int | None, train_iter: int | None, total: int) -> None:
        assert TrainConfig(epochs=epochs, train_iter=train_iter).total_iterations(10) == total

    def test_no_batch_at_all(self) -> None:
        with pytest.raises(ConfigError, match="an epoch without a batch"):
            TrainConfig().total_iterations(0)

    def test_linear_rule(self) -> None:
        assert TrainConfig().rate_factor(8, 4) == 1.0
        assert TrainConfig(base_batch_size=32).rate_factor(8) == 0.25
        assert TrainConfig(base_batch_size=32).rate_factor(32, 4) == 4.0

    def test_grad_clip_is_short_for_the_global_norm(self) -> None:
        assert TrainConfig(grad_clip=2).optimizer == OptimizerBuilder(grad_clip=ClipGradByGlobalNorm(2.0))
        assert TrainConfig().optimizer == OptimizerBuilder()


def test_conversion_of_unions_and_descriptions() -> None:
    assert convert(3, int | tuple[int, int] | None, "x") == 3
    assert convert([3, 4], int | tuple[int, int] | None, "x") == (3, 4)
    assert convert("None", str | None, "x") is None
    assert describe(int | tuple[int, ...] | None) == "an integer or a list, each an integer or null"
    assert describe(Augment) == "a Augment mapping"


@pytest.mark.parametrize(
    ("keys", "image", "found"),
    [
        ({}, (3, 32, 32), ((32, 32), 37, "rgb")),
        ({}, (3, 224, 224), ((224, 224), 256, "rgb")),
        ({}, (1, 48, 192), ((48, 192), (48, 192), "grey")),
        ({}, (3, None, None), ((224, 224), 256, "rgb")),
        ({}, (3, None, 32), ((224, 224), 256, "rgb")),
        ({}, (None, None, None), ((224, 224), 256, "rgb")),
        ({"img_size": 64}, (3, 32, 32), ((64, 64), 256, "rgb")),
        ({"resize_size": 40}, (3, 32, 32), ((32, 32), 40, "rgb")),
        ({"resize_size": None, "channel_order": "bgr"}, (3, 32, 32), ((32, 32), None, "bgr")),
        ({"resize_size": "auto", "img_size": "None"}, (3, 32, 32), ((32, 32), 37, "rgb")),
        ({"mean": 0.5, "std": 0.5}, (1, 32, 32), ((32, 32), 37, "grey")),
    ],
)
def test_what_is_not_given_is_the_models(keys: dict[str, Any], image: tuple[int | None, ...], found: Any) -> None:
    section = Global.from_mapping(keys).for_image(*image)
    assert (section.img_size, section.resize_size, section.channel_order) == found
    assert section.for_image() == section


def test_what_does_not_fit_to_the_model_is_said() -> None:
    with pytest.raises(ConfigError, match=r"Global.resize_size: 30 is below img_size \(32, 32\)"):
        Global(resize_size=30).for_image(3, 32, 32)
    with pytest.raises(ConfigError, match=r"Global.mean: .* must have 1 number, the images are grey"):
        Global(mean=(0.5, 0.5, 0.4)).for_image(1, 32, 32)


def test_one_number_stands_for_all_channels() -> None:
    section = Global.from_mapping({"mean": 127, "std": [128], "scale": 1})
    assert section.per_channel("mean") == (127.0,) * 3
    assert section.per_channel("std") == (128.0,) * 3
    assert Global().per_channel("mean") == (0.485, 0.456, 0.406)
    grey = Global.from_mapping({"channel_order": "grey"})
    assert (grey.per_channel("mean"), grey.per_channel("std")) == ((0.449,), (0.226,))
    assert Global.from_mapping({"channel_order": "grey", "mean": 0.5, "std": 0.5}).per_channel("std") == (0.5,)
