"""An exported image classifier becomes the same classifier in pure integers.

    import fullquant

    result = fullquant.quantize("configs/textline_demo.yaml", "output/textline_demo")
    rows = fullquant.evaluate("configs/textline_demo.yaml", "output/textline_demo")

The names below are the public surface. They are loaded when they are first used, so that `import fullquant` alone
imports no other package.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fullquant import errors

if TYPE_CHECKING:
    from fullquant.auto_compression import AutoCompression, CompressionResult
    from fullquant.auto_compression.evaluate import evaluate
    from fullquant.auto_compression.from_config import quantize
    from fullquant.readers import read_model

__version__ = "0.1.0"

__all__ = [
    "AutoCompression",
    "CompressionResult",
    "__version__",
    "errors",
    "evaluate",
    "quantize",
    "read_model",
]

# public name -> the module that has it
_HOMES = {
    "AutoCompression": "fullquant.auto_compression",
    "CompressionResult": "fullquant.auto_compression",
    "evaluate": "fullquant.auto_compression.evaluate",
    "quantize": "fullquant.auto_compression.from_config",
    "read_model": "fullquant.readers",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fullquant' has no attribute {name!r}")
    found = getattr(import_module(_HOMES[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
