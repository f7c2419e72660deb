"""The simulated model behind the same interface as the exported files: NumPy in, NumPy out."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fullquant.placement.decision import Decision
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

    def tensors(
        self, images: npt.NDArray[np.float32], keep: Collection[str] | None = None
    ) -> dict[str, npt.NDArray[Any]]:
        """The tensors named in `keep` as they are computed, {name: array}; all that have integers by default.

        A tensor that all its readers get rounded is rounded; one that some read unrounded is not.
        """
        module, placement = self.module, self.module.placement
        if keep is None:
            names = (module.input_name, *module.tensor_names())
            keep = [n for n in names if placement is None or _has_integers(placement.get(n))]
        computed = [name for name in keep if name != module.input_name]
        found = {name: images for name in keep if name == module.input_name}
        if computed:
            with torch.inference_mode():
                _, kept = module(self._on_device(images), keep=computed)
            found |= {name: tensor.cpu().numpy() for name, tensor in kept.items()}
        return found

    def predict(self, images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """images [N, C, H, W] -> outputs [N, classes]."""
        with torch.inference_mode():
            result: npt.NDArray[np.float32] = self.module(self._on_device(images)).cpu().numpy()
        return result

    def _on_device(self, images: npt.NDArray[np.float32]) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(images)).to(next(self.module.parameters()).device)


def _has_integers(decision: Decision | None) -> bool:
    return decision is not None and decision.spec is not None and not decision.fused
