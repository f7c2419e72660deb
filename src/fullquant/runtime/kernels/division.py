"""x / s for many x and one s, correctly rounded, without the slow division instruction."""

from __future__ import annotations

from typing import Any

import llvmlite.binding
import numba
from numba import types
from numba.extending import intrinsic

# Only for an instruction: where there is none, LLVM calls the C library for each element.
_FEATURES = llvmlite.binding.get_host_cpu_features()
HAS_FMA = _FEATURES.get("fma", False) or not llvmlite.binding.get_process_triple().startswith(("x86", "i"))


@intrinsic
def _fma(typing: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c, rounded once, float32."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.fma(*values)

    return types.float32(types.float32, types.float32, types.float32), generate


if HAS_FMA:

    @numba.njit(inline="always")
    def quotient(x: Any, s: Any, reciprocal: Any) -> Any:
        """x / s as IEEE 754 rounds it; reciprocal = 1 / s in float32. Finite x, no under- or overflow.

        q = x * (1/s) is off by an ulp or so; the remainder x - q * s is exact in a fused multiply-add and corrects it
        (Markstein 1990, "Computation of elementary functions on the IBM RISC System/6000", theorem 3).
        An infinite x gives NaN: clamp first.
        """
        q = x * reciprocal
        return _fma(_fma(-q, s, x), reciprocal, q)  # type: ignore[call-arg]

else:

    @numba.njit(inline="always")
    def quotient(x: Any, s: Any, reciprocal: Any) -> Any:
        """x / s, by the division itself."""
        return x / s
