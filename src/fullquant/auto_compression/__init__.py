"""Where the stages meet: read, place, calibrate, train, write, verify, report."""

from fullquant.auto_compression.api import AutoCompression, CompressionResult

__all__ = ["AutoCompression", "CompressionResult"]
