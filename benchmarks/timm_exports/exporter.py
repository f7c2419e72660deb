"""The exporting side, run by an interpreter that has timm: real architectures with weights as if they were trained.

    python exporter.py FOLDER IMAGES.npy NAME[:SIZE] ...

IMAGES.npy: float32 [n, 3, h, w], normalised. For each name FOLDER gets NAME.onnx, by PyTorch's exporter torch.export
("dynamo"), and NAME.npz: calibration and test images, and what PyTorch computes for the test images. Weights are timm's
initial ones; the statistics of BatchNorm are those of images, norms and layer scales are no identities, and the
classifier is fitted to tell mixtures of images apart, so that logits do not tie. One line of JSON per model on stdout.
"""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import timm
import torch
from torch import nn

CLASSES, CALIBRATION, TEST = 20, 16, 100


def mixtures(images, size, count, seed):
    """(images, labels): class k is the k-th image, with 0.3 times another one on top."""
    images = nn.functional.interpolate(torch.from_numpy(images), (size, size), mode="bilinear", antialias=True)
    labels = torch.arange(count) % CLASSES
    other = torch.randint(CLASSES, len(images), (count,), generator=torch.Generator().manual_seed(seed))
    return images[labels] + 0.3 * images[other], labels


def randomise(model, images):
    """Norms that are no identities, layer scales that are not tiny, BatchNorm statistics of the images."""
    for module in model.modules():
        norm = isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d | nn.LayerNorm | nn.GroupNorm)
        if norm and module.weight is not None:
            nn.init.uniform_(module.weight, 0.7, 1.3)
            nn.init.normal_(module.bias, 0, 0.2)
    for name, parameter in model.named_parameters():
        if name.endswith(("gamma", "layer_scale", "ls1", "ls2")):
            nn.init.uniform_(parameter, 0.3, 0.8)
    model.train()
    for module in model.modules():
        if "Drop" in type(module).__name__:
            module.eval()
        elif isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            module.momentum = 1.0  # the statistics are those of the one pass that follows
    with torch.no_grad():
        model(images)
    return model.eval()


def fit(model, images, labels):
    """Ridge regression from the features to one-hot vectors in the classifiers; logits of a deviation of 2."""
    heads = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == CLASSES]
    seen = {}
    hooks = [h.register_forward_pre_hook(lambda m, inputs: seen.__setitem__(m, inputs[0])) for h in heads]
    with torch.no_grad():
        model(images)
        for hook in hooks:
            hook.remove()
        for head, features in seen.items():
            x = features.double()
            mean = x.mean(0)
            x = x - mean
            y = nn.functional.one_hot(labels, CLASSES).double() - 1 / CLASSES
            kernel = x @ x.T
            kernel += 0.01 * kernel.diagonal().mean() * torch.eye(len(kernel))
            weight = (x.T @ torch.linalg.solve(kernel, y)).T
            scale = 2 / (x @ weight.T).std()
            head.weight.copy_(weight * scale)
            if head.bias is not None:
                head.bias.copy_(-(weight @ mean) * scale)


def export(folder, name, size, images):
    torch.manual_seed(0)
    options = {"img_size": size} if size else {}
    try:
        model = timm.create_model(name, pretrained=False, num_classes=CLASSES, **options)
    except TypeError:  # convolutional networks take any size
        model = timm.create_model(name, pretrained=False, num_classes=CLASSES)
    size = size or model.pretrained_cfg["input_size"][1]
    fitted, labels = mixtures(images, size, 160, 1)
    fit(randomise(model, fitted[:80]), fitted, labels)
    calibration, test = mixtures(images, size, CALIBRATION, 2)[0], mixtures(images, size, TEST, 3)[0]
    with torch.no_grad():
        logits = model(test)
    shapes = ({0: torch.export.Dim("batch", min=1, max=256)},)
    torch.onnx.export(
        model, (test[:2],), folder / f"{name}.onnx", dynamo=True, opset_version=18, verbose=False,
        input_names=["image"], output_names=["logits"], dynamic_shapes=shapes, external_data=False,
    )  # fmt: skip
    np.savez(folder / f"{name}.npz", calibration=calibration.numpy(), test=test.numpy(), logits=logits.numpy())
    parameters = sum(p.numel() for p in model.parameters())
    right = (logits.argmax(1) == torch.arange(TEST) % CLASSES).float().mean()
    return {"size": size, "parameters": parameters, "float_accuracy": round(float(right), 3)}


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no answer
    warnings.simplefilter("ignore")
    folder, images = Path(sys.argv[1]), np.load(sys.argv[2])
    for argument in sys.argv[3:]:
        name, _, size = argument.partition(":")
        began = time.monotonic()
        try:
            told = export(folder, name, int(size) if size else None, images)
        except Exception as error:
            told = {"export_error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
        answers.write(json.dumps({"name": name, **told, "seconds": round(time.monotonic() - began, 1)}) + "\n")


if __name__ == "__main__":
    main()
