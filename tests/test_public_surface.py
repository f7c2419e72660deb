"""What `import fullquant` gives, and what it costs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import fullquant

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("torch", "onnx", "onnx_ir", "onnxruntime", "numba", "paddle", "openvino", "numpy", "PIL")

MEASURE = """
import sys, time
began = time.perf_counter()
{statement}
seconds = time.perf_counter() - began
print(seconds, *(name for name in {heavy} if name in sys.modules))
"""


def measured(statement: str) -> tuple[float, list[str]]:
    """Seconds of a statement in a new interpreter, and the heavy packages that are loaded then."""
    code = MEASURE.format(statement=statement, heavy=HEAVY)
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    seconds, *loaded = result.stdout.splitlines()[-1].split()
    return float(seconds), loaded


def test_import_is_light():
    seconds, loaded = min(measured("import fullquant") for _ in range(3))
    assert loaded == []
    assert seconds < 0.3


def test_help_loads_nothing_heavy():
    statement = (
        "from typer.testing import CliRunner; from fullquant.cli.app import app\n"
        "for command in ([], ['quantize'], ['evaluate'], ['inspect']):\n"
        "    assert CliRunner().invoke(app, [*command, '--help']).exit_code == 0"
    )
    assert measured(statement)[1] == []


def test_measurement_finds_a_heavy_import():
    assert measured("import numpy")[1] == ["numpy"]


def test_public_names():
    expected = {
        "AutoCompression", "CompressionResult", "__version__", "errors", "evaluate", "quantize", "read_model",
    }  # fmt: skip
    assert set(fullquant.__all__) == expected
    assert expected <= set(dir(fullquant))
    for name in expected:
        assert getattr(fullquant, name) is not None


def test_names_are_the_real_ones():
    from fullquant.auto_compression import AutoCompression
    from fullquant.auto_compression.evaluate import evaluate
    from fullquant.readers import read_model

    assert fullquant.AutoCompression is AutoCompression
    assert fullquant.evaluate is evaluate
    assert fullquant.read_model is read_model


def test_unknown_name():
    with pytest.raises(AttributeError, match="no attribute 'compress'"):
        fullquant.compress  # noqa: B018


def test_version_is_that_of_the_project():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'\nversion = "{fullquant.__version__}"\n' in text
    assert f"## {fullquant.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_every_error_has_the_common_base():
    from fullquant import errors

    classes = [value for value in vars(errors).values() if isinstance(value, type)]
    assert len(classes) > 5
    assert all(issubclass(value, errors.FullquantError) for value in classes)
