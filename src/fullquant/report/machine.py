"""Where a measurement was made: processor, memory, versions. Names are looked up, nothing heavy is imported."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from collections.abc import Iterable
from pathlib import Path

PACKAGES = (
    "fullquant",
    "numpy",
    "torch",
    "onnx",
    "onnx_ir",
    "onnxscript",
    "onnxruntime",
    "paddlepaddle",
    "paddlepaddle-gpu",
    "openvino",
    "pillow",
    "numba",
    "protobuf",
)
# What decides how int8 kernels multiply on x86 and ARM (design.md, section 4, "Saturation").
_INSTRUCTION_SETS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm")


def package_versions(names: Iterable[str] = PACKAGES) -> dict[str, str]:
    """Installed versions by distribution name, Python first; packages that are not installed are left out."""
    versions = {"python": platform.python_version()}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def machine() -> dict[str, str]:
    """Processor, usable cores, int8-relevant instruction sets, memory and operating system, as text."""
    info = {
        "system": f"{platform.system()} {platform.release()}",
        "architecture": platform.machine(),
        "processor": _cpu_field("model name") or platform.processor() or platform.machine(),
        "cores": str(usable_cores()),
    }
    flags = set((_cpu_field("flags") or _cpu_field("Features") or "").split())
    if flags:
        info["instruction_sets"] = " ".join(name for name in _INSTRUCTION_SETS if name in flags)
        info["vnni"] = "yes" if flags & {"avx512_vnni", "avx_vnni"} else "no"
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        gigabytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
        info["memory"] = f"{gigabytes:.1f} GiB"
    return info


def usable_cores() -> int:
    """Processors that this process may run on."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpu_field(name: str) -> str:
    """The first value of a field of /proc/cpuinfo; empty where there is none."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return ""
