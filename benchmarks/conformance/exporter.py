"""The exporting side, run by an interpreter that has PaddlePaddle and paddleclas: one JSON line in, one out, per model.

    {"name": "ResNet50", "form": "json", "folder": "/tmp/x", "images": "/tmp/images.npy"}

Weights are drawn as He et al. do, smaller where that makes a network explode (`_smaller`); the statistics of BatchNorm
are those of the given images, its gamma and beta are drawn too; the last layer tells the images apart, image k is of
class k. So no operator is an identity, and classes do not tie. `--list` prints the names of all backbone constructors.
"""

from __future__ import annotations

import json
import math
import os
import re
import sys
import time

import numpy as np
import paddle
import paddle.nn as nn
from pixels import as_pixels

_SIZE = re.compile(r"_(256|299|336|384)(?:_|$)")
_OTHER_SIZES = {
    "InceptionV3": 299, "InceptionV4": 299, "EfficientNetB1": 240, "EfficientNetB2": 260, "EfficientNetB3": 300,
    "EfficientNetB4": 380, "EfficientNetB5": 456, "EfficientNetB6": 528, "EfficientNetB7": 600,
    "EfficientNetB3_watermark": 320, "Xception41": 299, "Xception65": 299, "Xception71": 299,
    "Xception41_deeplab": 299, "Xception65_deeplab": 299,
}  # fmt: skip
_SHAPES = {
    "MobileFaceNet": (112, 112), "WideResNet": (32, 32), "SVTR_tiny": (32, 100), "SVTR_base": (32, 100),
    "SVTR_large": (32, 100),
}  # fmt: skip
_DEVIATION = 2.0  # of the logits
#: What a constructor cannot do without; the rest is its default. UniFormer and CAE would download weights.
_ARGUMENTS = {
    "WideResNet": {"depth": 28, "widen_factor": 2, "dropout": 0.0, "num_classes": 1000},
    "UniFormer": {"pretrained": False},
    "cae_": {
        "pretrained": False,
        "enable_linear_eval": False,
        "model_key": "model",
        "model_ema": {},
        "init_values": 0.1,
    },
}
#: paddle.nn.functional.fold takes no open batch: the number of elements "must be greater or equal than zero".
_FIXED_BATCH, _BATCH = ("MobileViTV2", "MobileViTV3"), 4


def _backbones():
    root = next(p for p in sys.path if os.path.isdir(os.path.join(p, "paddleclas", "ppcls")))
    sys.path.insert(0, os.path.join(root, "paddleclas"))
    from ppcls.arch import backbone
    from ppcls.utils import logger

    logger.init_logger()

    found = {}
    for name in dir(backbone):
        item = getattr(backbone, name)
        if callable(item) and not name.startswith("_") and name not in ("get_apis", "PPLCNetBaseNet"):
            found[name] = item
    return found


def image_shape(name):
    """(height, width) that the constructor expects."""
    if name in _SHAPES:
        return _SHAPES[name]
    if name.startswith("LeViT"):  # 256 and 384 are widths
        return 224, 224
    if name.startswith("AdaFace"):
        return 112, 112
    if name.startswith("MobileViT"):  # the size that PaddleClas trains it with; 224 is no multiple of its patches
        return 256, 256
    found = re.search(r"window\d+_(\d{3})", name) or _SIZE.search(name)
    size = _OTHER_SIZES.get(name) or (int(found.group(1)) if found else 224)
    return size, size


class _Classifier(nn.Layer):
    """What PaddleClas exports: the first output of a network with several."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        y = self.network(x)
        while isinstance(y, (list, tuple, dict)):
            y = (y["logits"] if "logits" in y else next(iter(y.values()))) if isinstance(y, dict) else y[0]
        return y


def _draw(parameter, random, mean, deviation):
    shape = tuple(parameter.shape)
    parameter.set_value(random.normal(mean, deviation, shape).astype("float32"))


def _smaller(network):
    """{id of a weight: factor of its deviation} where He's scale makes what is computed grow with depth.

    A convolution for positions is added to what it reads, x + conv(x), and no norm follows: DSNet_base reached 1e9
    after 18 of them, and sums of such a map and one of ordinary size are half-way but for their last bit. Involution
    multiplies a map by kernels that it computes from it: unless the kernels' constant part is as large, an image twice
    as bright is four times as bright after one layer and 65536 times after four. Res2Net200 has 66 blocks, and rounding
    grew to 1e-4 with residual branches as large as what they are added to.
    """
    found = {}
    for path, layer in network.named_sublayers():
        if path.endswith("pos_embed") and isinstance(layer, nn.Conv2D):
            found[id(layer.weight)] = 0.2
        elif type(layer).__name__ == "Involution":
            found[id(layer.conv2.conv.weight)] = 0.1
        elif type(layer).__name__ == "BottleneckBlock" and "res2net" in type(layer).__module__:
            found[id(layer.conv2._batch_norm.weight)] = 0.3
    return found


def _randomize(network, random):
    """He's weights, norms that are no identities, and no parameter that is zero or tiny everywhere.

    A norm that its constructor starts at zero closes a residual branch (LeViT): it stays the smaller part of the sum.
    """
    seen, smaller = set(), _smaller(network)
    for layer in network.sublayers(include_self=True):
        own = {k: p for k, p in layer._parameters.items() if p is not None}
        norm = isinstance(layer, (nn.LayerNorm, nn.GroupNorm)) or "BatchNorm" in type(layer).__name__
        for key, parameter in own.items():
            if id(parameter) in seen or not str(parameter.dtype).endswith("float32"):
                continue
            seen.add(id(parameter))
            shape = tuple(parameter.shape)
            if norm and key in ("_mean", "_variance"):
                continue
            if norm and key == "weight":
                size = smaller.get(id(parameter), 1.0 if np.abs(parameter.numpy()).max() > 1e-3 else 0.3)
                parameter.set_value((size * random.uniform(0.7, 1.3, shape)).astype("float32"))
            elif norm:
                _draw(parameter, random, 0.0, 0.2)
            elif key == "weight" and len(shape) >= 2 and isinstance(layer, (nn.Conv2D, nn.Linear)):
                fan_in = math.prod(shape[1:]) if isinstance(layer, nn.Conv2D) else shape[0]
                deviation = math.sqrt((2.0 if isinstance(layer, nn.Conv2D) else 1.0) / fan_in)
                _draw(parameter, random, 0.0, smaller.get(id(parameter), 1.0) * deviation)
            elif key == "bias":
                _draw(parameter, random, 0.0, 0.1)
            else:
                values = parameter.numpy()
                if np.abs(values).max(initial=0.0) < 1e-3:  # a layer scale, a token
                    _draw(parameter, random, 0.3 if len(shape) == 1 else 0.0, 0.1)
                else:
                    parameter.set_value((values + random.normal(0, 0.05, shape)).astype("float32"))


def _estimate_statistics(network, images):
    """BatchNorm statistics of these images, by one pass in training mode without random layers.

    Of all images, as those of a trained network are of its whole data: with eight of them, one of the others had
    attention logits 900 times as large as theirs in LeViT_128S, and its float32 outputs were off by 1e-2 in any engine.
    """
    network.train()
    for layer in network.sublayers(include_self=True):
        kind = type(layer).__name__
        if "BatchNorm" in kind:
            layer._momentum = 0.0
        elif "Drop" in kind:
            layer.training = False
    with paddle.no_grad():
        network(images)


def _features(network, heads, images):
    """{id of a head: what it is given for these images}"""
    features = {}
    hooks = [
        head.register_forward_pre_hook(lambda layer, inputs: features.__setitem__(id(layer), inputs[0]))
        for head in heads
    ]
    with paddle.no_grad():
        network(images)
    for hook in hooks:
        hook.remove()
    return {key: value.numpy() for key, value in features.items()}


def _separate_classes(network, images):
    """The last layers become classifiers that tell these images apart, image k being of class k.

    Random layers would give logits that nearly tie, and then one step of rounding changes the class. Ridge regression
    from the centred features f_k to one-hot vectors: W = (F F^T + a I)^-1 F, b = -W mean(f); other classes stay random.
    """
    heads = _heads(network)
    features = _features(network, heads, images)
    for head in heads:
        if id(head) not in features:
            continue
        x = features[id(head)].astype(np.float64)
        x = x.mean(axis=(2, 3)) if x.ndim == 4 else x.reshape(len(x), -1, x.shape[-1]).mean(axis=1)
        mean = x.mean(axis=0)
        gram = (x - mean) @ (x - mean).T
        ridge = gram + 0.05 * np.trace(gram) / len(x) * np.eye(len(x))
        rows = np.linalg.solve(ridge, x - mean)  # [images, features]
        linear = isinstance(head, nn.Linear)
        weight = head.weight.numpy().astype(np.float64)
        weight = weight.T if linear else weight[:, :, 0, 0]  # [classes, features]
        weight *= 0.3 * np.linalg.norm(rows, axis=1).mean() / np.linalg.norm(weight, axis=1).mean()
        weight[: len(rows)] = rows
        bias = -weight @ mean
        scale = _DEVIATION / max(float((x @ weight.T + bias).std()), 1e-12)
        weight, bias = (weight * scale).astype("float32"), (bias * scale).astype("float32")
        head.weight.set_value(weight.T if linear else weight[:, :, None, None])
        if head.bias is not None:
            head.bias.set_value(bias)


def _heads(network):
    """Layers that give one logit per class."""
    found = []
    for layer in network.sublayers():
        linear = isinstance(layer, nn.Linear) and layer.weight.shape[1] == 1000
        pointwise = isinstance(layer, nn.Conv2D) and tuple(layer.weight.shape[::2]) == (1000, 1)
        if linear or (pointwise and layer._groups == 1):
            found.append(layer)
    return found


def _arguments(name):
    """Keyword arguments that the constructor must be given."""
    return next((given for start, given in _ARGUMENTS.items() if name.startswith(start)), {})


def _mend(name, constructor):
    """What paddleclas 2.6.0 forgets: some MobileViTV2 and two HRNet have no address of weights, yet look it up.

    Left as they are, since no change from outside runs them: SwinTransformerV2 (PatchEmbed returns a size that it does
    not compute, and a block is given an argument that it does not take), Swin SOLIDER (its blocks are called without
    the size that they take; it moves a constant to a GPU).
    """
    if name.startswith(("MobileViTV2", "HRNet_W60_C", "SE_HRNet_W64_C")):
        sys.modules[constructor.__module__].MODEL_URLS.setdefault(name, "")


def _reparametrize(network):
    """As PaddleClas does before it exports."""
    for layer in network.sublayers(include_self=True):
        if hasattr(layer, "re_parameterize") and not getattr(layer, "is_repped", False):
            layer.re_parameterize()


def export(name, constructor, folder, images_file, large=None):
    """Writes folder/inference.*; returns what is told about the model.

    large: {"parameters": of more than that many, "images": only the first so many}, to save time.
    """
    paddle.seed(0)
    random = np.random.default_rng(sum(name.encode()))
    _mend(name, constructor)
    network = _Classifier(constructor(**_arguments(name)))
    height, width = image_shape(name)
    parameters = sum(int(np.prod(p.shape)) for p in network.parameters())
    images = paddle.to_tensor(np.load(images_file))
    if large is not None and parameters > large["parameters"]:
        images = images[: large["images"]]
    images = paddle.nn.functional.interpolate(images, size=[height, width], mode="bilinear")
    images = paddle.to_tensor(as_pixels(images.numpy()))
    _randomize(network, random)
    _estimate_statistics(network, images)
    network.eval()
    _reparametrize(network)
    _separate_classes(network, images)
    batch = _BATCH if name.startswith(_FIXED_BATCH) else None
    spec = [paddle.static.InputSpec([batch, 3, height, width], "float32", name="x")]
    static = paddle.jit.to_static(network, input_spec=spec)
    paddle.jit.save(static, os.path.join(folder, "inference"))
    return {"height": height, "width": width, "parameters": parameters, "images": len(images), "batch": batch}


def main():
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is not an answer
    found = _backbones()
    if "--list" in sys.argv:
        answers.write(json.dumps(sorted(found)) + "\n")
        return
    for line in sys.stdin:
        answers.write(json.dumps(_in_a_child(json.loads(line), found)) + "\n")


def _in_a_child(task, found):
    """Some networks name their parameters, and a process takes each name once: so each export has a process."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        with os.fdopen(writing, "w") as pipe:
            pipe.write(json.dumps(_answer(task, found)))
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    _, status = os.waitpid(child, 0)
    return json.loads(text) if text else {"error": f"PaddlePaddle died (wait status {status})"}


def _answer(task, found):
    began = time.monotonic()
    try:
        if paddle.__version__ >= "3" and task["form"] == "pdmodel":
            paddle.set_flags({"FLAGS_enable_pir_api": 0})
        answer = export(task["name"], found[task["name"]], task["folder"], task["images"], task.get("large"))
    except Exception as error:
        answer = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[-300:]}"}
    return answer | {"seconds": round(time.monotonic() - began, 1)}


if __name__ == "__main__":
    main()
