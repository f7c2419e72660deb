"""What `verify` says of a runtime that leaves the simulation, on kernels that really do."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.auto_compression.saturating import looked_at

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def without_vnni(tmp_path_factory) -> dict[str, str]:
    """An environment whose programs see a processor without VNNI and AMX."""
    compiler = shutil.which("cc")
    if compiler is None or platform.machine() != "x86_64" or not sys.platform.startswith("linux"):
        pytest.skip("no C compiler, or not Linux on x86-64: VNNI cannot be hidden")
    if "cpuid_fault" not in Path("/proc/cpuinfo").read_text():
        pytest.skip("this processor has no CPUID faulting: VNNI cannot be hidden")
    library = tmp_path_factory.mktemp("native") / "hide_vnni.so"
    source = ROOT / "tests" / "native" / "hide_vnni.c"
    subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return {**os.environ, "LD_PRELOAD": str(library)}


def test_kernels_that_saturate_are_recognised_and_reduce_range_cures_them(without_vnni, tmp_path):
    """Design, section 4: x86 without VNNI adds two products in 16 bits."""
    command = [sys.executable, "-m", "tests.auto_compression.saturating", str(tmp_path)]
    ended = subprocess.run(command, env=without_vnni, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    if "hide_vnni: " in ended.stderr:
        pytest.skip("the kernel refuses CPUID faulting")
    found = json.loads(ended.stdout.splitlines()[-1])
    full, reduced = found["False"], found["True"]
    assert full["steps"] > 1
    assert full["tensor"] in ("r", "y")
    assert full["saturates"], full
    assert "reduce_range" in full["cause"]
    exact, saturated = full["evidence"]
    assert saturated > 0.95
    assert exact < 0.2
    assert reduced["steps"] <= 1
    assert not reduced["saturates"]


def test_with_vnni_the_same_layer_stays_within_a_step(tmp_path):
    cpu = Path("/proc/cpuinfo")
    if not cpu.is_file() or "vnni" not in cpu.read_text():
        pytest.skip("this processor has no VNNI")
    found = looked_at(tmp_path, reduce_range=False)
    assert found["steps"] == 0
    assert not found["saturates"]
