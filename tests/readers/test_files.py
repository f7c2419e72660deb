"""Finding the files of a model, and what is said when they are not there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fullquant.errors import ModelError
from fullquant.readers import ModelFiles, find_model

PIR = '{"base_code":{"magic":"pir"}}'


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., Path]:
    """Makes files of the given names in a folder."""

    def make(*names: str) -> Path:
        for name in names:
            (tmp_path / name).write_text(PIR if name.endswith(".json") else "")
        return tmp_path

    return make


@pytest.mark.parametrize(
    ("names", "source_format", "model", "params"),
    [
        (["inference.pdmodel", "inference.pdiparams"], "program_desc", "inference.pdmodel", "inference.pdiparams"),
        (["inference.json", "inference.pdiparams"], "pir", "inference.json", "inference.pdiparams"),
        (["m.json", "m.pdmodel", "m.pdiparams"], "program_desc", "m.pdmodel", "m.pdiparams"),
        (["a.pdmodel", "b.pdiparams"], "program_desc", "a.pdmodel", "b.pdiparams"),
        (["__model__", "__params__"], "program_desc", "__model__", "__params__"),
        (["__model__", "conv_w", "conv_b"], "program_desc", "__model__", "."),
        (["model.onnx", "labels.txt"], "onnx", "model.onnx", None),
        (["model.pdmodel"], "program_desc", "model.pdmodel", None),
        (["model.pdmodel", "__params__"], "program_desc", "model.pdmodel", "__params__"),
    ],
)
def test_found(
    folder: Callable[..., Path], names: list[str], source_format: str, model: str, params: str | None
) -> None:
    path = folder(*names)
    expected = ModelFiles(source_format, path / model, None if params is None else path / params)  # type: ignore[arg-type]
    assert find_model(path) == expected


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["m.pdmodel", "m.pdiparams", "labels.txt"], ["m.pdmodel", "m.pdiparams"]),
        (["__model__", "conv_b", "Conv_w"], ["__model__", "Conv_w", "conv_b"]),
        (["m.pdmodel"], ["m.pdmodel"]),
        (["m.onnx", "m.onnx.data"], ["m.onnx"]),  # this one is no ONNX model, and names no other file
    ],
)
def test_files_of_a_model(folder: Callable[..., Path], names: list[str], found: list[str]) -> None:
    path = folder(*names)
    for index, name in enumerate(found):
        (path / name).write_bytes(b"x" * 10**index)
    files = find_model(path)
    assert [p.name for p in files.paths()] == found
    assert files.size() == sum(10**index for index in range(len(found)))


def test_names_that_are_given(folder: Callable[..., Path]) -> None:
    path = folder("inference.pdmodel", "inference.json", "inference.pdiparams", "other.pdiparams")
    files = find_model(path, "inference.json", "other.pdiparams")
    assert files == ModelFiles("pir", path / "inference.json", path / "other.pdiparams")


def test_a_file_or_a_prefix_as_path(folder: Callable[..., Path]) -> None:
    path = folder("inference.json", "inference.pdiparams")
    expected = ModelFiles("pir", path / "inference.json", path / "inference.pdiparams")
    assert find_model(path / "inference.json") == expected
    assert find_model(path / "inference") == expected


def test_other_json_files_are_no_models(folder: Callable[..., Path]) -> None:
    path = folder("inference.json", "inference.pdiparams")
    (path / "config.json").write_text("{}")
    assert find_model(path).model.name == "inference.json"


def _message(path: Path, *names: str) -> str:
    with pytest.raises(ModelError) as caught:
        find_model(path, *names)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_nothing_there(folder: Callable[..., Path]) -> None:
    message = _message(folder("readme.txt"))
    assert "looked for *.pdmodel" in message
    assert "holds readme.txt" in message


def test_an_empty_folder(tmp_path: Path) -> None:
    assert "is empty; give the folder" in _message(tmp_path)


def test_no_such_folder(tmp_path: Path) -> None:
    assert "no such file or folder; model_dir must name the folder" in _message(tmp_path / "a" / "b")
    assert "no such file or folder" in _message(tmp_path / "b")


def test_a_given_name_that_is_not_there(folder: Callable[..., Path]) -> None:
    path = folder("inference.pdmodel", "inference.pdiparams")
    message = _message(path, "model.pdmodel")
    assert "no model file 'model.pdmodel'" in message
    assert "inference.pdmodel" in message
    assert "no parameter file 'p'" in _message(path, "inference.pdmodel", "p")


def test_more_than_one_model(folder: Callable[..., Path]) -> None:
    message = _message(folder("a.pdmodel", "b.pdmodel"))
    assert "(a.pdmodel, b.pdmodel)" in message
    assert "model_filename" in message


def test_more_than_one_parameter_file(folder: Callable[..., Path]) -> None:
    assert "params_filename" in _message(folder("m.pdmodel", "a.pdiparams", "b.pdiparams"))


def test_a_file_that_contradicts_the_name(folder: Callable[..., Path]) -> None:
    path = folder("a.pdmodel", "a.pdiparams")
    assert "model_filename says 'b.pdmodel'" in _message(path / "a.pdmodel", "b.pdmodel")


def test_long_listings_are_cut(folder: Callable[..., Path]) -> None:
    assert "and 12 more" in _message(folder(*(f"{index:02d}.txt" for index in range(20))))
