"""Runs Paddle Lite's converter, `paddle_lite_opt` of the package paddlelite (or the `opt` of a release)."""

from __future__ import annotations

import difflib
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from fullquant.errors import ConfigError, EngineError, ExportError, ModelError
from fullquant.readers import ModelFiles

PROGRAM = "paddle_lite_opt"
VARIABLE = "FULLQUANT_PADDLE_LITE_OPT"
INSTALL = (
    "it is in the package paddlelite, for CPython up to 3.10: python3.10 -m venv lite && "
    "lite/bin/pip install paddlelite==2.13rc0 'numpy<2'"
)
#: Places on which Lite itself computes, and devices behind its NNAdapter, which take parts of the network.
CPUS = ("arm", "x86")
NPUS = (
    "verisilicon_timvx", "huawei_ascend_npu", "huawei_kirin_npu", "mediatek_apu", "cambricon_mlu", "imagination_nna",
    "eeasytech_npu", "android_nnapi", "qualcomm_qnn", "kunlunxin_xtcl", "nvidia_tensorrt", "intel_openvino",
)  # fmt: skip
TARGETS = (*CPUS, "opencl", *NPUS)
#: What opt writes: the file for devices, or the optimised program as protobuf, to be looked at.
OutputType = Literal["naive_buffer", "protobuf"]

_PARTITION = "SUBGRAPH_PARTITION_CONFIG_FILE"
_SECONDS = 600
_LOG = re.compile(r"^\[[A-Z] +\d+/\d+ [^\]]*\] *")


def find_converter(given: str | os.PathLike[str] | None = None) -> Path:
    """The converter: the one given, else that of FULLQUANT_PADDLE_LITE_OPT, else the one on PATH. EngineError if none.

    given: a file, or a name on PATH.
    """
    for origin, name in (("--paddle-lite-opt", given), (VARIABLE, os.environ.get(VARIABLE))):
        if name:
            found = shutil.which(name)
            if found is None:
                raise EngineError(f"{origin} names {os.fspath(name)}, which is no program; {INSTALL}")
            return Path(found)
    found = shutil.which(PROGRAM)
    if found is None:
        raise EngineError(
            f"{PROGRAM} is not on PATH; {INSTALL}; then name it with --paddle-lite-opt lite/bin/{PROGRAM}, "
            f"or in {VARIABLE}"
        )
    return Path(found)


def interpreter_of(converter: Path) -> Path | None:
    """The Python that the converter runs in, by its first line; None where it is a compiled program."""
    try:
        with converter.open("rb") as stream:
            first = stream.readline(1024)
    except OSError:
        return None
    if not first.startswith(b"#!"):
        return None
    command = first[2:].decode("utf-8", "replace").split()
    name = command[-1] if command else ""
    found = shutil.which(name) if "python" in Path(name).name else None
    return None if found is None else Path(found)


def check_targets(text: str) -> tuple[str, ...]:
    """Names of `--valid_targets`, in order of preference. ConfigError for an unknown one, or an NPU without a CPU."""
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if not names:
        raise ConfigError("--valid_targets is empty; give arm, x86 or verisilicon_timvx,arm")
    for name in names:
        if name not in TARGETS:
            near = difflib.get_close_matches(name, TARGETS, 1)
            hint = f"did you mean {near[0]}?" if near else f"it is one of {', '.join(TARGETS)}"
            raise ConfigError(f"--valid_targets: Paddle Lite has no target {name!r}; {hint}")
    if not any(name in CPUS for name in names):
        raise ConfigError(
            f"--valid_targets {','.join(names)}: a processor is needed too, for what {names[0]} cannot compute and for "
            f"the input; write {','.join(names)},arm"
        )
    return names


def npu_of(targets: Sequence[str]) -> str | None:
    """The NNAdapter device among the targets, if any."""
    return next((name for name in targets if name in NPUS), None)


def paddle_files(files: ModelFiles) -> tuple[Path, Path]:
    """(program, parameters) as opt takes them. ModelError for a form of model that Paddle Lite does not read."""
    if files.source_format != "program_desc":
        what = "an ONNX model" if files.source_format == "onnx" else "a Paddle 3 program"
        raise ModelError(
            f"{files.model}: is {what}; Paddle Lite reads *.pdmodel with *.pdiparams, as quantize writes them"
        )
    if files.params is None or files.params.is_dir():
        raise ModelError(
            f"{files.model}: its parameters are not in one file; export the model with combined parameters"
        )
    return files.model, files.params


def run_converter(
    converter: Path, model: Path, params: Path, targets: Sequence[str], output: Path, kind: OutputType,
    *, partition: Path | None = None,
) -> Path:  # fmt: skip
    """Converts a program and its parameters; returns what was written.

    output: a name without suffix. "naive_buffer" writes <output>.nb; "protobuf" the folder <output> with the files
        model and params.
    partition: a file that names operators to be left to the processor (Lite's SUBGRAPH_PARTITION_CONFIG_FILE).
    Raises ExportError with what the program said, where it fails or writes nothing.
    """
    arguments = [f"--model_file={model.resolve()}", f"--param_file={params.resolve()}"]
    arguments += [f"--valid_targets={','.join(targets)}", f"--optimize_out_type={kind}", f"--optimize_out={output}"]
    extra = {} if partition is None else {_PARTITION: str(partition.resolve())}
    done = _run([str(converter), *arguments], extra)
    written = output.with_name(f"{output.name}.nb") if kind == "naive_buffer" else output / "model"
    if done.returncode != 0 or not written.is_file():
        said = last_words(done.stderr) or how_it_ended(done.returncode)
        raise ExportError(f"{converter.name} cannot convert {model} for {','.join(targets)}: {said}")
    return written if kind == "naive_buffer" else output


def version_of(converter: Path) -> str:
    """What the converter calls itself, "unknown" where it does not say."""
    done = _run([str(converter), "--version"], {})
    lines = (done.stdout.strip() or done.stderr.strip()).splitlines()
    return lines[-1].strip() if done.returncode == 0 and lines else "unknown"


def supported_operators(converter: Path) -> Mapping[str, frozenset[str]]:
    """device -> Paddle operators that this converter can place there; empty where it does not list them."""
    done = _run([str(converter), "--print_all_ops=true"], {})
    return parse_operators(done.stdout) if done.returncode == 0 else {}


def parse_operators(text: str) -> Mapping[str, frozenset[str]]:
    """Reads the table of `--print_all_ops`: a column for each device, a Y where it has the operator.

    The columns are found by the places of their names; a mark belongs to the name that it stands nearest to.
    """
    lines = [line for line in text.splitlines() if line.strip()]
    header = next((line for line in lines if "OP_name" in line), None)
    if header is None:
        return {}
    columns = {m.group(): (m.start() + m.end()) / 2 for m in re.finditer(r"\S+", header) if m.group() != "OP_name"}
    found: dict[str, set[str]] = {name: set() for name in columns}
    for line in lines[lines.index(header) + 1 :]:
        operator = line.split()[0]
        for mark in re.finditer(r"(?<=\s)Y(?=\s|$)", line):
            found[min(columns, key=lambda name: abs(columns[name] - mark.start() - 0.5))].add(operator)
    return {name: frozenset(operators) for name, operators in found.items()}


def last_words(text: str) -> str:
    """The last thing that a program of Google's logging said before it died: a fatal message, else its last line."""
    lines = text.splitlines()
    fatal = [index for index, line in enumerate(lines) if line.startswith("[F ")]
    if fatal:
        message = [_LOG.sub("", lines[fatal[-1]])]
        message += [
            line for line in lines[fatal[-1] + 1 : fatal[-1] + 3] if not line.startswith(("[", "***", "@", " "))
        ]
        return " ".join(part.strip() for part in message if part.strip())
    kept = [line.strip() for line in lines if line.strip()]
    return _LOG.sub("", kept[-1]) if kept else ""


def how_it_ended(status: int) -> str:
    """For a program that said nothing."""
    if status < 0:
        return f"it was killed by {signal.Signals(-status).name}"
    return f"it ended with status {status} and wrote no file" if status else "it wrote no file"


def _run(command: list[str], extra: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Runs the converter in a folder of its own, where it may leave what it likes."""
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    with tempfile.TemporaryDirectory(prefix="fullquant-lite-") as folder:
        try:
            return subprocess.run(
                command, cwd=folder, capture_output=True, text=True, errors="replace", timeout=_SECONDS,
                env={**environment, **extra}, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise EngineError(f"{command[0]} did not end within {_SECONDS} s; run it by hand to see why") from None
        except OSError as error:
            raise EngineError(f"{command[0]} cannot be run ({error.strerror}); {INSTALL}") from None
