"""The result of the harness as a table: one row per model and form, and the sums at the top."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

#: A model passes where our float graph is that near to Paddle Inference, relative to the output's range, or where both
#: are that near to our graph in float64: two float32 evaluations are apart by the sum of their errors,
FLOAT_TOLERANCE = 1e-4
#: and the classes of the exported files are those of the simulation on that share of the images.
AGREEMENT = 0.99

Result = Mapping[str, Any]
_NOT_EXPORTED = "not exported"
_COLUMNS, _FORMS = 12, ("json", "pdmodel")
_ENGINES = ("onnxruntime", "paddle", "paddle_json")
# Looked at where they are there: results of earlier versions of the harness have no round trip.
_FLOATS = {
    "float_difference": "float", "executor_difference": "float in PyTorch",
    "round_trip_difference": "round trip to a Paddle program",
}  # fmt: skip


def verdict(result: Result) -> str:
    """ "pass", or what is missing, in the order of the steps."""
    if "export_error" in result:
        return f"{_NOT_EXPORTED}: {result['export_error']}"
    if "error" in result:
        return str(result["error"])
    rounding = result.get("float64_difference", 1.0) <= FLOAT_TOLERANCE
    differences = {what: result[key] for key, what in _FLOATS.items() if key in result or what == "float"}
    for what, difference in differences.items():
        if not difference <= FLOAT_TOLERANCE and not rounding:  # NaN fails too
            return f"{what}: differs from Paddle by {difference:.1e} of the range"
    if not result["full_integer"]:
        return f"float tensors: {', '.join(result['float_tensors'][:3])}"
    worst = min(result[f"{engine}_same"] for engine in _ENGINES if f"{engine}_same" in result)
    if worst < AGREEMENT:
        return f"exported: {worst:.0%} of the classes are those of the simulation"
    return "pass"


def markdown(results: Mapping[str, Result], heading: str, names: Sequence[str] | None = None, earlier: str = "") -> str:
    """The whole document. results: "name form" -> result; heading: the lines in front of the table.

    names: of all constructors, so that it is told which were not run. earlier: the document as it was; its rows stay
    where no result replaces them (results are kept by the machine that made them, the document by everybody).
    """
    rows = {key: (line, told) for key, line, told in _rows_of(earlier)}
    rows |= {key: (_row(key, result, told := verdict(result)), told) for key, result in results.items()}
    told = {key: rows[key][1] for key in sorted(rows)}
    built = [key for key in told if not told[key].startswith(_NOT_EXPORTED)]
    passed = [key for key in built if told[key] == "pass"]
    lines = [
        heading,
        f"**{len(passed)} of {len(built)} exported models pass** "
        f"({len(told) - len(built)} were left out or not exported).{_coverage(told, names)}",
        "",
        "| model | form | parameters | float difference | round trip | full integer | agreement with float "
        "| ONNX Runtime | Paddle | Paddle `.json` | commit | verdict |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    return "\n".join([*lines, *(rows[key][0] for key in told), "", *_not_run(told, names)])


def _rows_of(document: str) -> Iterator[tuple[str, str, str]]:
    """(key, line, verdict) of each row of a table that was written before."""
    for line in document.splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)][1:-1]
        if len(cells) == _COLUMNS and cells[1] in _FORMS:
            yield f"{cells[0]} {cells[1]}", line, cells[-1].replace("\\|", "|")


def _coverage(told: Mapping[str, str], names: Sequence[str] | None) -> str:
    if names is None:
        return ""
    run, passed = ({key.split()[0] for key in told if told[key] in kinds} for kinds in (set(told.values()), {"pass"}))
    return f" Of {len(names)} constructors {len(run)} were run and {len(passed)} pass in at least one form."


def _not_run(keys: Iterable[str], names: Sequence[str] | None) -> list[str]:
    run = {key.split()[0] for key in keys}
    left = [name for name in names or () if name not in run]
    return [f"Not run ({len(left)}): {', '.join(left)}.", ""] if left else []


def _row(key: str, result: Result, told: str) -> str:
    name, form = key.split()
    parameters = result.get("parameters")
    cells = [
        name, form, f"{parameters / 1e6:.1f} M" if parameters else "",
        _float_cell(result), _number(result.get("round_trip_difference")),
        {True: "yes", False: "no"}.get(result.get("full_integer"), ""), _share(result.get("agreement")),
        *(f"{_number(result.get(f'{e}_difference'))} {_share(result.get(f'{e}_same'))}".strip() for e in _ENGINES),
        str(result.get("commit", "")), told.replace("|", "\\|"),
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def _float_cell(result: Result) -> str:
    exact = result.get("float64_difference")
    return _number(result.get("float_difference")) + ("" if exact is None else f" ({_number(exact)})")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.0e}"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"
