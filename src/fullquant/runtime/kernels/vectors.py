"""Which vector instructions numba compiles for: to be set before the first kernel is compiled."""

from __future__ import annotations

import llvmlite.binding
import numba


def use_whole_vectors() -> bool:
    """Lets LLVM use the 512-bit registers where they cost no clock rate; True where it did.

    LLVM prefers half of them for the sake of the first processors that had them. From those with VNNI on (Ice Lake,
    Zen 4) that caution costs: HardSwish between two fake-quantize, forward 0.49 -> 0.32 ns an element, backward
    0.86 -> 0.65 (Xeon with AMX, one thread). NUMBA_CPU_NAME or NUMBA_CPU_FEATURES in the environment win.
    """
    features = llvmlite.binding.get_host_cpu_features()
    if not features.get("avx512vnni", False) or numba.config.CPU_NAME or numba.config.CPU_FEATURES:  # type: ignore[attr-defined]
        return False
    numba.config.CPU_NAME = llvmlite.binding.get_host_cpu_name()  # type: ignore[attr-defined]
    numba.config.CPU_FEATURES = f"{features.flatten()},-prefer-256-bit"  # type: ignore[attr-defined]
    return True
