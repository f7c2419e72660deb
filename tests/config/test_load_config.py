"""load_config: sections, strategies, and mistakes answered in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fullquant.config import Config, Distillation, QuantAware, QuantPost, load_config
from fullquant.config.config import _SECTIONS
from fullquant.errors import ConfigError

PROJECT = Path(__file__).resolve().parents[2]


def _write(folder: Path, text: str) -> Path:
    path = folder / "some.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def _message(source: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(source)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_full_quantization_example() -> None:
    """The keys of PaddleSlim's mobilenetv3_large_qat_dis.yaml, with what they mean."""
    config = load_config(PROJECT / "configs" / "mobilenetv3_large_qat_dis.yaml")
    assert config.strategy == "qat"
    assert config.target() == "paddle_lite"
    assert config.global_section.input_name == "inputs"
    assert config.global_section.model_path == Path("MobileNetV3_large_x1_0_infer")
    assert config.global_section.batch_size == 128
    images = config.global_section.for_image(3, None, None)
    assert (images.img_size, images.resize_size, images.channel_order) == ((224, 224), 256, "rgb")
    assert config.distillation == Distillation(loss=("soft_label",))
    assert config.quant_aware is not None
    assert config.quant_aware.use_pact
    assert config.quant_aware.op_types is None
    assert config.train.learning_rate == 0.001
    assert config.train.optimizer.optimizer.SECTION == "Momentum"
    assert config.train.optimizer.l2_decay == 2e-5
    assert config.train.total_iterations(10009) == 20018
    assert config.source is not None
    assert config.source.endswith("mobilenetv3_large_qat_dis.yaml")


@pytest.mark.parametrize("path", sorted((PROJECT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_configurations(path: Path) -> None:
    config = load_config(path)
    assert config.strategy == ("ptq" if path.stem.endswith("_ptq") else "qat")
    assert config.global_section.need("model_dir")
    assert config.global_section.need("data_dir")
    assert config.quantization.op_types is None


def test_configurations_of_the_assets_name_what_is_there(assets: Path) -> None:
    for path in (PROJECT / "configs").glob("*.yaml"):
        section = load_config(path).global_section
        folder = Path(section.need("model_dir"))
        if folder.parts[:3] == ("..", "shared", "assets"):
            folder = assets.joinpath(*folder.parts[3:])
            assert (folder / str(section.model_filename)).is_file(), path
            assert (folder / str(section.params_filename)).is_file(), path


# The shape of PaddleSlim's example/auto_compression/image_classification/configs/*/qat_dis.yaml.
PADDLESLIM_QAT = """
Global:
  model_dir: MobileNetV1_infer
  model_filename: inference.pdmodel
  params_filename: inference.pdiparams
  batch_size: 32
  resize_size: 320
  img_size: 299
  data_dir: ./ILSVRC2012
Distillation:
  alpha: 1.0
  loss: l2
  node:
  - softmax_0.tmp_0
{section}:
  use_pact: true
  activation_bits: 8
  is_full_quantize: false
  onnx_format: True
  activation_quantize_type: moving_average_abs_max
  weight_quantize_type: channel_wise_abs_max
  not_quant_pattern:
  - skip_quant
  quantize_op_types:
  - conv2d
  - depthwise_conv2d
  weight_bits: 8
TrainConfig:
  epochs: 1
  eval_iter: 500
  learning_rate:
    type: CosineAnnealingDecay
    learning_rate: 0.015
  optimizer_builder:
    optimizer:
      type: Momentum
    weight_decay: 0.00002
  origin_metric: 0.70898
"""


@pytest.mark.parametrize("section", ["QuantAware", "Quantization"])
def test_auto_compression_example(tmp_path: Path, section: str) -> None:
    config = load_config(_write(tmp_path, PADDLESLIM_QAT.format(section=section)))
    assert config.strategy == "qat"
    assert config.quantization.op_types == ("conv2d", "depthwise_conv2d")
    assert config.distillation.node == (("softmax_0.tmp_0",),)
    assert config.global_section.resize_size == 320


def test_sections_choose_the_strategy() -> None:
    assert load_config({"QuantAware": None}).strategy == "qat"
    assert load_config({"QuantPost": {}}).strategy == "ptq"
    empty = load_config({})
    with pytest.raises(ConfigError, match="configuration: nothing says how to quantize; add a section QuantAware"):
        _ = empty.strategy
    assert load_config({"QuantPost": {"target": "openvino"}}).target("gpu") == "openvino"


def test_two_strategies_contradict() -> None:
    assert "keep one" in _message({"QuantAware": {}, "QuantPost": {}})
    with pytest.raises(ConfigError, match="keep one"):
        Config(quant_aware=QuantAware(), quant_post=QuantPost())


def test_flat_evaluation_file(tmp_path: Path) -> None:
    config = load_config(_write(tmp_path, "model_dir: './m'\nbatch_size: 128\nimg_size: 224\n"))
    assert config.global_section.model_dir == "./m"


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"QuantAwar": {}}, "unknown section 'QuantAwar'; did you mean 'QuantAware'?"),
        ({"QuantAware": {}, "img_size": 3}, "unknown section 'img_size'; it is a key of Global: indent it there"),
        ({"QuantAware": {"weight_bit": 8}}, "QuantAware: unknown key 'weight_bit'; did you mean 'weight_bits'?"),
        ({"QuantAware": {"weight_bits": 4}}, "QuantAware.weight_bits: 4 is not available (only 8)"),
        ({"QuantAware": {"weight_bits": "8"}}, "QuantAware.weight_bits: '8' is not available (only 8)"),
        ({"QuantAware": {"use_pact": 1}}, "QuantAware.use_pact: 1 is not true or false"),
        ({"QuantAware": [1]}, "QuantAware: [1] is not a mapping"),
        ({"QuantAware": {}, "Quantization": {}}, "keep one"),
        ({"Distillation": {}}, "Distillation needs QuantAware"),
        (
            {"ChannelPrune": {"pruned_ratio": 0.5}, "Global": {"crop_size": 299}},
            "section ChannelPrune is not available",
        ),
        ({"HyperParameterOptimization": None, "QuantPost": {}}, "there is no search"),
        ({"MultiTeacherDistillation": {}}, "there is one teacher"),
        ({"QuantPost": {"bias_correct": True, "bias_correction": True}}, "another spelling of 'bias_correction'"),
        (
            {"QuantPost": {"recon_level": "layer-wise"}},
            "QuantPost.recon_level: 'layer-wise' is not available (only null)",
        ),
        ({"QuantPost": {"algo": "KL"}}, "QuantPost.algo: 'KL' is not one of auto, fisher, hist, mse, abs_max, min_max"),
        ({"TrainConfig": {"amp_config": {}}}, "TrainConfig.amp_config: {} is not available (only null)"),
        ({"TrainConfig": {"sparse_model": True}}, "TrainConfig.sparse_model: true is not available (only false)"),
        ({"TrainConfig": {"sparse_model": 0}}, "TrainConfig.sparse_model: 0 is not available (only false)"),
        ({1: {}}, "unknown section 1"),
    ],
)
def test_mistakes(document: dict[Any, Any], message: str) -> None:
    assert message in _message(document)


def test_file_is_named(tmp_path: Path) -> None:
    path = _write(tmp_path, "QuantAware: {weight_bit: 8}\n")
    assert _message(path).startswith(f"{path}: QuantAware: unknown key")
    assert _message(str(path)).startswith(f"{path}: ")
    assert _message(tmp_path / "no.yaml") == f"{tmp_path / 'no.yaml'}: no such configuration file"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Global: {seed: 1}\nGlobal: {seed: 2}\n", "line 2: key 'Global' is given twice (first in line 1)"),
        ("Global:\n  seed: 1\n  workers: 2\n  seed: 2\n", "line 4: key 'seed' is given twice (first in line 2)"),
        ("Global: [", "not valid YAML"),
        ("", "must hold sections"),
        ("- Global\n", "must hold sections"),
        ("Global: !!python/object/apply:os.getcwd []\n", "not valid YAML"),
        ("? [a, b]\n: 1\n", "cannot be a key"),
    ],
)
def test_broken_files(tmp_path: Path, text: str, message: str) -> None:
    assert message in _message(_write(tmp_path, text))


def test_unreadable_file(tmp_path: Path) -> None:
    (tmp_path / "some.yaml").write_bytes(b"\xff\xfe\x00")
    assert "cannot be read" in _message(tmp_path / "some.yaml")
    assert "cannot be read" in _message(tmp_path)


def test_numbers_and_merges_of_yaml(tmp_path: Path) -> None:
    text = "base: &base {eval_iter: 7}\n"
    assert "unknown section 'base'" in _message(_write(tmp_path, text))
    text = "QuantAware: {}\nTrainConfig:\n  <<: {eval_iter: 7, train_iter: 9}\n  eval_iter: 8\n  learning_rate: 1e-3\n"
    train = load_config(_write(tmp_path, text)).train
    assert (train.eval_iter, train.train_iter, train.learning_rate) == (8, 9, 0.001)


@given(st.text("abcdefghijklmnopqrstuvwxyz_", min_size=1), st.sampled_from(sorted(_SECTIONS)))
def test_no_unknown_key_is_swallowed(key: str, section: str) -> None:
    cls = _SECTIONS[section]
    if key not in {*cls.keys(), *cls.FIXED, *cls.ALIASES}:
        with pytest.raises(ConfigError, match="unknown key"):
            cls.from_mapping({key: 1})


def test_mapping_is_not_changed() -> None:
    document = {
        "QuantAware": {},
        "TrainConfig": {"learning_rate": {"type": "StepDecay", "learning_rate": 1, "step_size": 2}},
    }
    load_config(document)
    assert document["TrainConfig"]["learning_rate"] == {"type": "StepDecay", "learning_rate": 1, "step_size": 2}


def test_a_file_in_another_encoding(tmp_path: Path) -> None:
    path = tmp_path / "some.yaml"
    path.write_bytes("Global: {data_dir: Bilder}\n".encode("utf-16"))
    assert _message(path) == f"{path}: cannot be read: not UTF-8 (invalid start byte); save it as UTF-8"
    assert _message(tmp_path) == f"{tmp_path}: cannot be read: Is a directory"
