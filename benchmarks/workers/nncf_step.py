"""A training step of NNCF on MobileNetV3-large: nncf.quantize puts fake-quantize in, then the network is trained on."""

from __future__ import annotations

import nncf
import torch
from gate import Gate, versions
from mobilenetv3 import mobilenetv3_large
from torch_loop import arguments, memory_format, perturb, tensors, train

_CALIBRATION_IMAGES = 8


def main() -> None:
    given = arguments(__doc__)
    gate = Gate()
    layout = memory_format(given.layout)
    batches = tensors(given)
    teacher = mobilenetv3_large().to(memory_format=layout)
    student: torch.nn.Module = mobilenetv3_large().to(memory_format=layout)
    perturb(student.parameters())
    if given.variant == "qat":
        sample = batches[0][:_CALIBRATION_IMAGES].contiguous(memory_format=layout)
        student = nncf.quantize(student, nncf.Dataset([sample]), subset_size=1)
    fake_quantizers = sum("Quantizer" in type(module).__name__ for module in student.modules())
    train(
        gate, teacher.eval(), student.train(), batches,
        versions=versions("nncf", "torch", "numpy"), fake_quantizers=fake_quantizers,
    )  # fmt: skip


if __name__ == "__main__":
    main()
