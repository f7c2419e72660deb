"""A training step of PT2E quantization-aware training (torchao) on MobileNetV3-large, in eager execution."""

from __future__ import annotations

import copy

import torch
from gate import Gate, versions
from mobilenetv3 import mobilenetv3_large
from torch_loop import arguments, memory_format, perturb, tensors, train
from torchao.quantization.pt2e import move_exported_model_to_train
from torchao.quantization.pt2e.quantize_pt2e import prepare_qat_pt2e
from torchao.quantization.pt2e.quantizer import Quantizer
from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
    X86InductorQuantizer,
    get_default_x86_inductor_quantization_config,
)
from torchao.testing.pt2e._xnnpack_quantizer import XNNPACKQuantizer, get_symmetric_quantization_config


def quantizer(name: str) -> Quantizer:
    """XNNPACK's: symmetric int8 weights per channel; X86Inductor's: uint8 activations."""
    if name == "xnnpack":
        config = get_symmetric_quantization_config(is_per_channel=True, is_qat=True)
        return XNNPACKQuantizer().set_global(config)
    return X86InductorQuantizer().set_global(get_default_x86_inductor_quantization_config(is_qat=True))


def student_of(net: torch.nn.Module, sample: torch.Tensor, name: str) -> torch.nn.Module:
    """The exported network with fake-quantize, its observers switched on as a training run begins."""
    exported = torch.export.export(net, (sample,)).module()
    prepared: torch.nn.Module = prepare_qat_pt2e(exported, quantizer(name))
    return move_exported_model_to_train(prepared)


def main() -> None:
    given = arguments(__doc__, quantizers=("xnnpack", "x86_inductor"))
    gate = Gate()
    layout = memory_format(given.layout)
    batches = tensors(given)
    teacher = mobilenetv3_large().to(memory_format=layout).eval()
    student: torch.nn.Module = copy.deepcopy(teacher)
    perturb(student.parameters())
    if given.variant == "qat":
        student = student_of(student, batches[0], given.quantizer)
    fake_quantizers = sum("FakeQuant" in type(module).__name__ for module in student.modules())
    train(gate, teacher, student, batches, versions=versions("torchao", "torch"), fake_quantizers=fake_quantizers)


if __name__ == "__main__":
    main()
