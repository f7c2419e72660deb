"""The direction of imports, the addresses of heavy packages, and the length of files, over the ast of all sources."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCES = Path(__file__).resolve().parents[1] / "src" / "fullquant"

# From the top down: a folder imports what stands below it. Folders on one line do not import each other.
LAYERS = (
    ("__main__",),
    ("cli",),
    ("auto_compression",),
    ("report", "training", "calibration", "evaluation", "lint"),
    ("runtime",),
    ("readers", "passes", "placement", "writers", "data", "distributed"),
    ("graph", "formats"),
    ("numerics",),
    ("config",),
    ("errors",),
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
LEVEL["__init__"] = -1  # the public surface names what all others have

# A leaf that others of its level may import, for it holds the vocabulary of decisions: writers get a Placement.
SHARED_LEAVES = frozenset({"fullquant.placement.decision"})

# package -> the only places that import it
HEAVY = {
    "torch": ("runtime/", "training/", "calibration/", "distributed/"),
    "paddle": ("runtime/paddle_session.py",),
    "openvino": ("runtime/openvino_session.py",),
    "onnxruntime": ("runtime/onnxruntime_session.py",),
    "numba": ("runtime/kernels/",),
    "matplotlib": (),
    "rapidocr_paddle": (),
}
GENERATED = frozenset({"formats/framework_pb2.py"})
MOST_LINES = 450


def imported(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every import; `from fullquant.a import b` counts as fullquant.a.b too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "fullquant" if node.level else str(node.module)
            yield node.lineno, base
            if base.split(".")[0] == "fullquant":
                yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def wrong_directions(place: str, source: str) -> list[str]:
    """Imports of `place` (a path below src/fullquant) that do not point downward."""
    home = place.split("/")[0].removesuffix(".py")
    problems = []
    for line, name in imported(ast.parse(source)):
        parts = name.split(".")
        if parts[0] != "fullquant" or len(parts) < 2 or parts[1] not in LEVEL or parts[1] == home:
            continue
        if ".".join(parts[:3]) in SHARED_LEAVES and LEVEL[home] == LEVEL[parts[1]]:
            continue
        if LEVEL[parts[1]] <= LEVEL[home]:
            problems.append(f"{place}:{line}: {home} imports {name}")
    return problems


def heavy_imports(place: str, source: str) -> list[str]:
    """Imports of heavy packages outside their addresses."""
    return [
        f"{place}:{line}: imports {name}"
        for line, name in imported(ast.parse(source))
        for package, allowed in HEAVY.items()
        if name.split(".")[0] == package and not any(place.startswith(prefix) for prefix in allowed)
    ]


def too_long(place: str, source: str) -> list[str]:
    """Files above the limit of lines."""
    lines = source.count("\n")
    return [f"{place}: {lines} lines, at most {MOST_LINES}"] if lines > MOST_LINES else []


CHECKS = (wrong_directions, heavy_imports, too_long)


def sources() -> dict[str, str]:
    """All modules but the generated ones: {path below src/fullquant: text}."""
    found = {path.relative_to(SOURCES).as_posix(): path for path in sorted(SOURCES.rglob("*.py"))}
    return {place: path.read_text(encoding="utf-8") for place, path in found.items() if place not in GENERATED}


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_sources(check):
    assert [problem for place, text in sources().items() for problem in check(place, text)] == []


def test_every_folder_has_a_level():
    assert {place.split("/")[0].removesuffix(".py") for place in sources()} <= set(LEVEL)


@pytest.mark.parametrize(
    ("check", "place", "source"),
    [
        (wrong_directions, "passes/fold.py", "from fullquant.runtime.executor import GraphModule"),
        (wrong_directions, "passes/fold.py", "def f():\n    import fullquant.readers.onnx"),
        (wrong_directions, "errors.py", "from fullquant import config"),
        (wrong_directions, "graph/edit.py", "from fullquant.formats.param_stream import read"),
        (wrong_directions, "report/html.py", "from fullquant.training import qat"),
        (heavy_imports, "data/loader.py", "import torch.utils.data"),
        (heavy_imports, "training/qat.py", "if True:\n    from paddle import nn"),
        (heavy_imports, "runtime/sessions.py", "import paddle"),
        (too_long, "cli/app.py", "x = 1\n" * (MOST_LINES + 1)),
    ],
)
def test_checks_find_wrong_cases(check, place, source):
    assert len(check(place, source)) >= 1


@pytest.mark.parametrize(
    ("place", "source"),
    [
        ("cli/app.py", "from fullquant.errors import FullquantError"),
        ("passes/fold.py", "from fullquant.passes.linear import merge\nfrom fullquant.graph import edit"),
        ("writers/onnx_qdq.py", "from fullquant.placement.decision import Placement"),
        ("runtime/executor.py", "import torch\nimport numpy"),
        ("__init__.py", "from fullquant import errors"),
    ],
)
def test_checks_accept_right_cases(place, source):
    assert [problem for check in CHECKS for problem in check(place, source)] == []
