"""Latency and file size of the float and the int8 model in every runtime that is installed, measured in turn."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fullquant.auto_compression.saved import SavedModel, find_saved, float_model, image_shape, read_at, recorded_output
from fullquant.data.progress import ProgressBar
from fullquant.errors import ConfigError, EngineError, FullquantError
from fullquant.passes import prepare
from fullquant.readers import ModelFiles, find_model
from fullquant.report.machine import machine, package_versions
from fullquant.report.record import utc_now
from fullquant.runtime.executed import ExecutedGraph
from fullquant.runtime.sessions import Session, Source, available_engines, executed, open_session

Variant = Literal["float", "int8"]

ONNX_ENGINES = ("onnxruntime", "openvino")
PADDLE_ENGINES = ("paddle", "paddle_onednn")
#: Paddle Lite's interpreter on x86 checks files; it is no deployment whose time would mean anything.
ENGINES = (*ONNX_ENGINES, *PADDLE_ENGINES)

_WARMUP, _PER_TURN = 3, 5
# Threads of a runtime spin for a while after their work; the next one must not compete with them.
_PAUSE_WITH_THREADS = 0.1


@dataclass(frozen=True)
class BenchmarkRow:
    """One model in one runtime.

    milliseconds: of every timed run of one batch. file_bytes: parameters included.
    integer_layers, float_layers: convolutions and matrix products as the runtime executes them; None: it does not tell.
    speedup: median of the float model in this runtime divided by this median; None without a float model.
    error: why there are no numbers.
    """

    engine: str
    variant: Variant
    file: str
    file_bytes: int
    milliseconds: tuple[float, ...] = ()
    median_ms: float | None = None
    p90_ms: float | None = None
    speedup: float | None = None
    integer_layers: int | None = None
    float_layers: int | None = None
    operators: Mapping[str, int] = field(default_factory=dict)
    error: str = ""


@dataclass(frozen=True)
class Benchmark:
    """All rows, the float model in front of the int8 one; what was measured, where, with what."""

    rows: tuple[BenchmarkRow, ...]
    threads: int
    batch: int
    image: tuple[int, ...]
    repeats: int
    machine: Mapping[str, str]
    versions: Mapping[str, str]
    created: str


@dataclass
class _Entrant:
    """A row to be."""

    engine: str
    variant: Variant
    paths: tuple[Path, ...]
    source: Source
    session: Session | None = None
    graph: ExecutedGraph | None = None
    milliseconds: list[float] = field(default_factory=list)
    error: str = ""


def benchmark(
    save_dir: str | Path, *, reference: str | Path | None = None, engines: Sequence[str] | None = None,
    threads: int = 1, batch: int = 1, repeats: int = 100, image_size: Sequence[int] | None = None,
    progress: bool = True,
) -> Benchmark:  # fmt: skip
    """Times the int8 files of a folder beside the float model, in one run, a few runs of each in turn.

    save_dir: what `quantize` wrote, or an int8 file. reference: the float model; by default the one of the report.
    engines: by default all that are installed and take one of the files. threads: of each runtime.
    repeats: timed runs of each model; each turn starts with one that is not timed. image_size: (height, width) where
    the model leaves it free and no report says it.

    A runtime that refuses a file is a row with its error. Raises ConfigError, ModelError and EngineError (an engine
    that is unknown or not installed).
    """
    saved = find_saved(save_dir)
    source = float_model(saved, reference)
    shape = image_shape(saved, image_size)
    chosen = _chosen(engines, saved)
    entrants = [entrant for engine in chosen for entrant in _entrants(engine, saved, source, shape)]
    for entrant in entrants:
        _open(entrant, threads)
    images = np.random.default_rng(0).normal(0, 1, (batch, *shape)).astype(np.float32)
    _run_in_turn(entrants, images, repeats, _PAUSE_WITH_THREADS if threads > 1 else 0.0, progress)
    rows = tuple(_row(entrant, entrants) for entrant in entrants)
    return Benchmark(rows, threads, batch, shape, repeats, machine(), package_versions(), utc_now())


def _chosen(engines: Sequence[str] | None, saved: SavedModel) -> list[str]:
    fitting: list[str] = [
        engine
        for engine in available_engines()
        if engine in ENGINES and (engine in ONNX_ENGINES or saved.paddle is not None)
    ]
    if not engines or list(engines) == ["all"]:
        return fitting
    for engine in engines:
        if engine not in ENGINES:
            raise ConfigError(f"engine {engine!r} is not measured; it is one of {', '.join(ENGINES)}")
    return list(dict.fromkeys(engines))


def _entrants(engine: str, saved: SavedModel, source: Path | None, shape: Sequence[int]) -> list[_Entrant]:
    """The float model, if the engine takes it, and the int8 one."""
    found: list[_Entrant] = []
    files = None if source is None else find_model(source)
    if files is not None and (engine in ONNX_ENGINES or files.source_format != "onnx"):
        found.append(
            _Entrant(engine, "float", tuple(files.paths()), _source(engine, files, shape, recorded_output(saved)))
        )
    int8 = saved.paddle if engine in PADDLE_ENGINES or saved.onnx is None else find_model(saved.onnx)
    if int8 is None:
        found.append(_Entrant(engine, "int8", (), "", error=f"{saved.folder} holds no Paddle program for {engine}"))
    else:
        found.append(_Entrant(engine, "int8", tuple(int8.paths()), _source(engine, int8, shape)))
    return found


def _source(engine: str, files: ModelFiles, shape: Sequence[int], output: str | None = None) -> Source:
    """ONNX runtimes get a Paddle program as our canonical graph of it, BatchNorm folded."""
    if engine in ONNX_ENGINES and files.source_format != "onnx":
        return prepare(read_at(files.model, shape, output))
    return files.model


def _open(entrant: _Entrant, threads: int) -> None:
    if entrant.error:
        return
    try:
        entrant.session = open_session(entrant.source, entrant.engine, threads=threads)
    except EngineError as error:
        if entrant.engine not in available_engines():
            raise
        entrant.error = str(error)
        return
    entrant.graph = executed(entrant.session)


def _run_in_turn(
    entrants: Sequence[_Entrant], images: npt.NDArray[np.float32], repeats: int, pause: float, progress: bool
) -> None:
    """A few runs of A, of B, of C, and again, so that a drift of the machine hits all alike."""
    running = [entrant for entrant in entrants if entrant.session is not None]
    for entrant in running:
        _turn(entrant, images, _WARMUP, timed=False)
    with ProgressBar("measure", repeats * len(running), unit="runs", enabled=progress) as bar:
        done = 0
        while done < repeats:
            count = min(_PER_TURN, repeats - done)
            for entrant in running:
                time.sleep(pause)
                _turn(entrant, images, 1, timed=False)
                _turn(entrant, images, count)
                bar.advance(count)
            done += count


def _turn(entrant: _Entrant, images: npt.NDArray[np.float32], count: int, *, timed: bool = True) -> None:
    if entrant.session is None or entrant.error:
        return
    feeds: dict[str, Any] = {entrant.session.input_names[0]: images}
    try:
        for _ in range(count):
            began = time.perf_counter()
            entrant.session.run(feeds)
            if timed:
                entrant.milliseconds.append((time.perf_counter() - began) * 1e3)
    except FullquantError as error:
        entrant.error = str(error)


def _row(entrant: _Entrant, entrants: Sequence[_Entrant]) -> BenchmarkRow:
    name = entrant.paths[0].name if entrant.paths else ""
    size = sum(path.stat().st_size for path in entrant.paths)
    if entrant.error or not entrant.milliseconds:
        return BenchmarkRow(entrant.engine, entrant.variant, name, size, error=entrant.error)
    median, p90 = (float(v) for v in np.percentile(entrant.milliseconds, [50, 90]))
    floats = [e for e in entrants if e.engine == entrant.engine and e.variant == "float" and e.milliseconds]
    graph = entrant.graph
    return BenchmarkRow(
        entrant.engine, entrant.variant, name, size, tuple(entrant.milliseconds), median, p90,
        speedup=float(np.median(floats[0].milliseconds)) / median if floats else None,
        integer_layers=None if graph is None else graph.integer_layers,
        float_layers=None if graph is None else graph.float_layers,
        operators={} if graph is None else dict(graph.operators),
    )  # fmt: skip
