"""The Paddle 3 program beside the .pdmodel: as Paddle's translator makes it, and the same outputs however it is run."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from fullquant.auto_compression.exporting import export, paddle_names
from fullquant.auto_compression.stages import QuantizedModel
from fullquant.errors import ExportError
from fullquant.passes import prepare
from fullquant.placement.place import PlacementOptions, place
from fullquant.readers import find_model, read_model
from fullquant.runtime.sessions import open_session
from fullquant.writers import program_desc
from fullquant.writers.paddle_builder import PaddleProgram
from fullquant.writers.pir import pir_json
from fullquant.writers.program_desc import build_paddle, write_paddle
from tests import graphs
from tests.writers.paddle_oracle import minmax_qparams
from tests.writers.test_paddle_ops import CASES

needs_paddle = pytest.mark.skipif(
    importlib.util.find_spec("paddle") is None, reason="Paddle is the oracle (pip install paddlepaddle)"
)
SHORT = PlacementOptions(scale_grid="short")


def images(*shape: int) -> np.ndarray:
    return np.random.default_rng(3).standard_normal(shape).astype(np.float32)


def write(folder: Path, model: ir.Model, x: np.ndarray, options: PlacementOptions = SHORT) -> Path:
    """The prefix of the two programs and their parameters."""
    placement = place(model, "paddle_lite", options)
    prefix = folder / "m"
    write_paddle(
        model, placement, minmax_qparams(model, placement, x), folder / "m.pdmodel", folder / "m.pdiparams",
        json_path=folder / "m.json",
    )  # fmt: skip
    return prefix


def paddle_process(*arguments: str, **flags: str) -> None:
    environment = {**os.environ, **flags, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = [sys.executable, "-m", "tests.writers.paddle_translator", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]


# --- structure -------------------------------------------------------------------------------------------------------


def terms(document: Mapping[str, Any]) -> tuple[set[str], list[Any]]:
    """(parameters with their types, the outputs as terms): without value numbers and the order of operations."""
    (region,) = document["program"]["regions"]
    (block,) = region["blocks"]
    values: dict[int, Any] = {0: None}
    parameters, outputs = set(), []
    for op in block["ops"]:
        if op["#"] == "p":
            parameters.add(json.dumps([op["A"][3], op["O"]["TT"]]))
            values[op["O"]["%"]] = op["A"][3]
            continue
        if op["#"] in ("1.data", "1.feed"):  # a saved program has the one, a translated one the other
            (name,) = (a["AT"]["D"] for a in op["A"] if a["N"] == "name")
            values[op["O"][0]["%"]] = name
            continue
        term = [op["#"], op["A"], [values[i["%"]] for i in op["I"]], [r["TT"] for r in op["O"]]]
        if op["#"] == "1.fetch":
            outputs.append(term)
        for index, result in enumerate(op["O"]):
            values[result["%"]] = [term, index]
    return parameters, outputs


@pytest.fixture(scope="module")
def translated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("translated")
    for name, case in CASES.items():
        path = folder / f"{name.replace(' ', '_')}.pdmodel"
        write_paddle(case.model(), None, {}, path, path.with_suffix(".pdiparams"), json_path=path.with_suffix(".json"))
    paddle_process("translate", str(folder), FLAGS_enable_pir_api="0")
    return folder


@needs_paddle
@pytest.mark.parametrize("name", CASES)
def test_programs_are_those_of_paddles_translator(translated: Path, name: str) -> None:
    path = translated / f"{name.replace(' ', '_')}.json"
    ours = terms(json.loads(path.read_text()))
    theirs = terms(json.loads(path.with_suffix(".translated.json").read_text()))
    assert ours == theirs


def test_the_comparison_notices_an_attribute_an_operand_and_a_type() -> None:
    document = json.loads(pir_json(build_paddle(CASES["conv"].model(), None, {})))
    changes = {
        "attribute": lambda ops: ops["1.conv2d"]["A"][4]["AT"].update(D=2),
        "operand": lambda ops: ops["1.add"]["I"].reverse(),
        "type": lambda ops: ops["1.add"]["O"][0]["TT"]["D"][1].__setitem__(1, 6),
    }
    for change in changes.values():
        changed = json.loads(json.dumps(document))
        change({op["#"]: op for op in changed["program"]["regions"][0]["blocks"][0]["ops"]})
        assert terms(changed) != terms(document)


def test_an_operator_without_a_row_is_refused() -> None:
    program = build_paddle(CASES["relu"].model(), None, {})
    program.desc.blocks[0].ops[1].type = "celu"
    with pytest.raises(ExportError, match=r"no row for operator 'celu' \(output 'y'\)"):
        pir_json(PaddleProgram(program.desc, program.parameters))


# --- outputs ---------------------------------------------------------------------------------------------------------

OPTIONS = {
    "short scales": SHORT,
    "free scales": PlacementOptions(),
    "one scale per weight": PlacementOptions(per_channel=False),
    "reduced range": PlacementOptions(reduce_range=True),
    "literal": PlacementOptions(full=False),
    "kept float": PlacementOptions(skip_patterns=("HardSwish_12", "Conv_2")),
}


@needs_paddle
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_paddle_inference_gives_the_outputs_of_the_pdmodel(tmp_path: Path, options: PlacementOptions) -> None:
    x = images(8, 3, 8, 8)
    prefix = write(tmp_path, graphs.small_classifier(), x, options)
    (expected,) = open_session(prefix.with_suffix(".pdmodel"), "paddle", optimize=False).run({"x": x})
    for optimize in (False, True):
        (actual,) = open_session(prefix.with_suffix(".json"), "paddle", optimize=optimize).run({"x": x})
        assert np.array_equal(actual, expected)


@needs_paddle
def test_a_wrong_scale_is_noticed(tmp_path: Path) -> None:
    x = images(8, 3, 8, 8)
    prefix = write(tmp_path, graphs.small_classifier(), x)
    (expected,) = open_session(prefix.with_suffix(".json"), "paddle").run({"x": x})
    text = prefix.with_suffix(".json").read_text()
    prefix.with_suffix(".json").write_text(
        text.replace('"0.a_i32","D":8},"N":"bit_length"', '"0.a_i32","D":7},"N":"bit_length"', 1)
    )
    (actual,) = open_session(prefix.with_suffix(".json"), "paddle").run({"x": x})
    assert not np.array_equal(actual, expected)


@needs_paddle
def test_a_real_network_in_every_way_to_load_it(tmp_path: Path, ocr_model_dir: Path) -> None:
    x = images(4, 3, 48, 192)
    prefix = write(tmp_path, prepare(read_model(ocr_model_dir)), x)
    (expected,) = open_session(prefix.with_suffix(".pdmodel"), "paddle", optimize=False).run({"x": x})
    (actual,) = open_session(prefix.with_suffix(".json"), "paddle").run({"x": x})
    assert np.array_equal(actual, expected)
    np.save(prefix.with_suffix(".npy"), x)
    paddle_process("load", str(prefix))
    with np.load(f"{prefix}.out.npz") as results:
        assert list(results["feeds"]) == ["x"]
        assert np.array_equal(results["jit"], expected)
        assert np.array_equal(results["static"], expected)


def test_the_readers_make_the_same_graph_of_both_programs(tmp_path: Path) -> None:
    x = images(8, 3, 8, 8)
    prefix = write(tmp_path, graphs.small_classifier(), x)
    answers = [
        open_session(prefix.with_suffix(suffix), "onnxruntime", optimize=False).run({"x": x})[0]
        for suffix in (".pdmodel", ".json")
    ]
    assert np.array_equal(*answers)
    kinds = [
        sorted(node.op_type for node in read_model(prefix.with_suffix(suffix)).graph if "Linear" in node.op_type)
        for suffix in (".pdmodel", ".json")
    ]
    assert kinds[0] == kinds[1]


# --- files -----------------------------------------------------------------------------------------------------------


def quantized(x: np.ndarray) -> QuantizedModel:
    model = graphs.small_classifier()
    placement = place(model, "paddle_lite", SHORT)
    return QuantizedModel(model, placement, minmax_qparams(model, placement, x), None)  # type: ignore[arg-type]


def test_the_program_lies_beside_the_pair_and_the_pair_is_found_first(tmp_path: Path) -> None:
    files = export(quantized(images(4, 3, 8, 8)), tmp_path, ("cls.pdmodel", "cls.pdiparams"))
    assert files.paddle_json == tmp_path / "cls.json"
    assert files.paddle_json in files.paths()
    assert find_model(tmp_path).model == tmp_path / "cls.pdmodel"
    assert find_model(tmp_path / "cls.json").params == tmp_path / "cls.pdiparams"


def test_an_older_program_never_lies_beside_other_parameters(tmp_path: Path) -> None:
    names = ("cls.pdmodel", "cls.pdiparams")
    export(quantized(images(4, 3, 8, 8)), tmp_path, names)
    files = export(quantized(images(4, 3, 8, 8)), tmp_path, names, onnx_format=False)
    assert files.paddle_json is None
    assert not (tmp_path / "cls.json").exists()
    (tmp_path / "cls.json").write_text('{"notes": "of the user"}')
    export(quantized(images(4, 3, 8, 8)), tmp_path, names, onnx_format=False)
    assert (tmp_path / "cls.json").exists()


def test_the_report_keeps_its_name() -> None:
    assert paddle_names("report.pdmodel", None) == ("inference.pdmodel", "inference.pdiparams")


def test_all_three_files_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x = images(4, 3, 8, 8)
    prefix = write(tmp_path, graphs.small_classifier(), x)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def broken(*_: object) -> bytes:
        raise ExportError("no row")

    monkeypatch.setattr(program_desc, "pir_json", broken)
    with pytest.raises(ExportError, match="no row"):
        write(tmp_path, graphs.small_classifier(), 2 * x)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    assert prefix.with_suffix(".json").exists()
