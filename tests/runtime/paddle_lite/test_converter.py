"""Finding and running the converter; its words where it fails. The program is a script here."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from fullquant.errors import ConfigError, EngineError, ExportError, ModelError
from fullquant.readers import ModelFiles
from fullquant.runtime.paddle_lite.converter import (
    VARIABLE,
    check_targets,
    find_converter,
    interpreter_of,
    last_words,
    npu_of,
    paddle_files,
    parse_operators,
    run_converter,
    supported_operators,
    version_of,
)
from tests.paddle_lite_program import script

TABLE = """\
Some heading
        OP_name  kARM  kX86  mediatek_apu  verisilicon_timvx
         conv2d     Y     Y             Y              Y
            pad                                           \n\
  strided_slice           Y                            Y
"""


@pytest.fixture
def nowhere(monkeypatch, tmp_path) -> Path:
    """An environment in which no converter is found."""
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    return tmp_path


def test_an_absent_converter_is_named_with_the_remedy(nowhere, monkeypatch) -> None:
    with pytest.raises(EngineError, match=r"not on PATH; .*pip install paddlelite==2.13rc0.*--paddle-lite-opt"):
        find_converter()
    with pytest.raises(EngineError, match="--paddle-lite-opt names /no/opt, which is no program"):
        find_converter("/no/opt")
    monkeypatch.setenv(VARIABLE, "/no/other")
    with pytest.raises(EngineError, match=f"{VARIABLE} names /no/other"):
        find_converter()


def test_what_is_given_wins_over_the_variable_and_that_over_path(nowhere, monkeypatch) -> None:
    folder = nowhere / "empty"
    folder.mkdir()
    on_path, named, given = (script(folder / name, "") for name in ("paddle_lite_opt", "named", "given"))
    assert find_converter() == on_path
    monkeypatch.setenv(VARIABLE, str(named))
    assert find_converter() == named
    assert find_converter(str(given)) == given


def test_the_python_of_a_wheel_is_in_the_first_line(tmp_path) -> None:
    for first, expected in ((f"#!{sys.executable}", sys.executable), ("#!/bin/sh", None), ("\x7fELF", None)):
        (tmp_path / "opt").write_text(f"{first}\nimport paddlelite\n", encoding="latin-1")
        found = interpreter_of(tmp_path / "opt")
        assert found == (None if expected is None else Path(expected))
    assert interpreter_of(tmp_path / "absent") is None


def test_targets() -> None:
    assert check_targets("verisilicon_timvx, arm") == ("verisilicon_timvx", "arm")
    assert npu_of(("verisilicon_timvx", "arm")) == "verisilicon_timvx"
    assert npu_of(("arm",)) is None
    for text, words in (
        ("armm", "no target 'armm'; did you mean arm"),
        ("timvx,arm", "no target 'timvx'"),
        ("verisilicon_timvx", "write verisilicon_timvx,arm"),
        (" , ", "empty"),
    ):
        with pytest.raises(ConfigError, match=words):
            check_targets(text)


def test_only_legacy_programs_with_one_parameter_file(tmp_path) -> None:
    model, params = tmp_path / "m.pdmodel", tmp_path / "m.pdiparams"
    assert paddle_files(ModelFiles("program_desc", model, params)) == (model, params)
    for files, words in (
        (ModelFiles("onnx", tmp_path / "m.onnx", None), "is an ONNX model; Paddle Lite reads"),
        (ModelFiles("pir", tmp_path / "m.json", params), "is a Paddle 3 program"),
        (ModelFiles("program_desc", model, tmp_path), "not in one file"),
    ):
        with pytest.raises(ModelError, match=words):
            paddle_files(files)


def test_marks_belong_to_the_nearest_column() -> None:
    found = parse_operators(TABLE)
    assert found["verisilicon_timvx"] == {"conv2d", "strided_slice"}
    assert found["kX86"] == {"conv2d", "strided_slice"}
    assert found["kARM"] == found["mediatek_apu"] == {"conv2d"}
    assert parse_operators("nothing of the kind") == {}


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (
            "WARNING: x\n[F 11/25  4:29:43.132 ...parser.cc:171 Find] \nError, the file 'a' is not there.\n",
            "Error, the file 'a' is not there.",
        ),
        ("[I 1/2  3: 4: 5. 6 a.cc:1 F] hi\n[F 11/25  4: 7: 8. 99 op.h:118 Get] Check failed: x\n", "Check failed: x"),
        ("Traceback:\n  File x\nModuleNotFoundError: No module named 'paddlelite'\n\n", "ModuleNotFoundError: .*"),
        ("\n \n", ""),
    ],
)  # fmt: skip
def test_last_words(said: str, expected: str) -> None:
    import re

    assert re.fullmatch(expected if ".*" in expected else re.escape(expected), last_words(said))


def convert(converter: Path, folder: Path, kind: str = "naive_buffer", **extra: Path) -> Path:
    model, params = folder / "m.pdmodel", folder / "m.pdiparams"
    return run_converter(converter, model, params, ("arm",), folder / "out", kind, **extra)  # type: ignore[arg-type]


def test_what_it_is_asked(tmp_path) -> None:
    said = tmp_path / "said"
    text = f'echo "$@" $SUBGRAPH_PARTITION_CONFIG_FILE > {said}; touch {tmp_path}/out.nb'
    converter = script(tmp_path / "opt", text)
    (tmp_path / "keep.txt").write_text("softmax:x:y")
    assert convert(converter, tmp_path, partition=tmp_path / "keep.txt") == tmp_path / "out.nb"
    words = said.read_text().split()
    assert f"--model_file={tmp_path}/m.pdmodel" in words
    assert "--valid_targets=arm" in words
    assert words[-1] == str(tmp_path / "keep.txt")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("echo '[F 1/2  3:4:5.6 a.cc:7 Run] Check failed: no kernel for conv2d' >&2; exit 134", "no kernel for conv2d"),
        ("exit 3", "ended with status 3"),
        ("kill -SEGV $$", "killed by SIGSEGV"),
        ("echo fine", "it wrote no file"),
    ],
)
def test_a_failure_in_its_own_words(tmp_path, text: str, words: str) -> None:
    with pytest.raises(ExportError, match=f"opt cannot convert .*m.pdmodel for arm: .*{words}"):
        convert(script(tmp_path / "opt", text), tmp_path)


def test_a_file_that_cannot_be_run(tmp_path) -> None:
    (tmp_path / "opt").write_text("x")
    with pytest.raises(EngineError, match=r"cannot be run \(.*pip install paddlelite"):
        convert(tmp_path / "opt", tmp_path)


def test_it_may_litter_only_its_own_folder(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    convert(script(tmp_path / "opt", f"touch litter; touch {tmp_path}/out.nb"), tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["opt", "out.nb"]


def test_version_and_operators(tmp_path) -> None:
    opt = script(tmp_path / "opt", f"case $1 in --version) echo v2.13-rc;; *) cat <<'X'\n{TABLE}X\nesac")
    assert version_of(opt) == "v2.13-rc"
    assert "pad" not in supported_operators(opt)["verisilicon_timvx"]
    failing = script(tmp_path / "bad", "exit 1")
    assert (version_of(failing), supported_operators(failing)) == ("unknown", {})
