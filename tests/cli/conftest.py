"""The tiny model and images of test_cli.py, for the other tests of the commands."""

from __future__ import annotations

from tests.test_cli import _log_handlers, config, data, model

__all__ = ["_log_handlers", "config", "data", "model"]
