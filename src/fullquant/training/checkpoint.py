"""State of a training run on disk, so that a killed run goes on where its last checkpoint was."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import torch

from fullquant.errors import TrainingError

_VERSION = 1


def save_checkpoint(path: Path, state: dict[str, Any], digest: str) -> None:
    """Writes the state atomically: either the old or the new file is there, never half of one.

    digest: identifies model, data and settings; a checkpoint is only ever loaded with the same digest.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            torch.save({"version": _VERSION, "digest": digest, "state": state}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def load_checkpoint(path: Path, digest: str) -> dict[str, Any] | None:
    """The state, or None where there is no checkpoint or it belongs to other settings.

    TrainingError: the file is there but cannot be read.
    """
    if not path.exists():
        return None
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).splitlines()[0].split(". ")[0] if str(error) else type(error).__name__
        raise TrainingError(f"cannot read the checkpoint {path} ({reason}); delete it to start anew") from error
    if found.get("version") != _VERSION or found.get("digest") != digest:
        return None
    state: dict[str, Any] = found["state"]
    return state
