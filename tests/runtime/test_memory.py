"""The heap keeps freed blocks and asks for huge pages."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

_CODE = """
from fullquant.runtime.memory import keep_large_blocks
print(keep_large_blocks(), keep_large_blocks())
flags, here = "", False
for line in open("/proc/self/smaps"):
    here = "[heap]" in line if "-" in line.split()[0] else here
    if here and line.startswith("VmFlags"):
        flags += line
print("hg" in flags.split())
"""


@pytest.mark.skipif(
    not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="this kernel has no transparent huge pages"
)
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator and /proc are Linux's")
def test_the_heap_is_in_huge_pages() -> None:
    ended = subprocess.run([sys.executable, "-c", _CODE], capture_output=True, text=True, check=True)
    assert ended.stdout.split() == ["True", "True", "True"]
