"""The simulated model behind the same interface as the exported files: NumPy in, NumPy out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fullquant.runtime.executor import GraphModule


class Simulator:
    """A GraphModule in inference mode. `engine` is "simulated" for a student, "float" for a teacher."""

    def __init__(self, module: GraphModule) -> None:
        self.module = module
        self.engine = "float" if module.placement is None else "simulated"
        self.input_names: tuple[str, ...] = (module.input_name,)
        self.output_names: tuple[str, ...] = (module.output_name,)

    def run(self, feeds: Mapping[str, npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
        """feeds: {input name: images [N, C, H, W]}; one output array."""
        (images,) = feeds.values()
        return [self.predict(images)]

    def predict(self, images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """images [N, C, H, W] -> outputs [N, classes]."""
        device = next(self.module.parameters()).device
        with torch.inference_mode():
            result: npt.NDArray[np.float32] = (
                self.module(torch.from_numpy(np.ascontiguousarray(images)).to(device)).cpu().numpy()
            )
        return result
