"""MobileNetV3-large of paddle.vision as an exported program with random weights, without its dropout.

PaddleSlim 2.6 fails at the dropout operator of an exported program. Runs in PaddleSlim's environment.
"""

from __future__ import annotations

import math
import sys

import numpy as np
import paddle
from gate import Answers, versions


def randomize(net: paddle.nn.Layer) -> None:
    """Weights with which activations neither vanish nor overflow; paddle's own start lets them vanish."""
    random = np.random.default_rng(0)
    for layer in net.sublayers():
        if isinstance(layer, (paddle.nn.Conv2D, paddle.nn.Linear)):
            shape = layer.weight.shape
            fan = math.prod(shape[1:]) if len(shape) == 4 else shape[0]
            layer.weight.set_value((random.standard_normal(shape) * math.sqrt(1.7 / fan)).astype("float32"))
        if isinstance(layer, (paddle.nn.Conv2D, paddle.nn.Linear, paddle.nn.BatchNorm2D)) and layer.bias is not None:
            layer.bias.set_value((0.1 * random.standard_normal(layer.bias.shape)).astype("float32"))


def main() -> None:
    answers = Answers()
    net = paddle.vision.models.mobilenet_v3_large(pretrained=False)
    for name, layer in net.classifier.named_children():
        if isinstance(layer, paddle.nn.Dropout):
            setattr(net.classifier, name, paddle.nn.Identity())
    randomize(net)
    net.eval()
    spec = paddle.static.InputSpec([None, 3, 224, 224], "float32", "x")
    paddle.jit.save(paddle.jit.to_static(net, input_spec=[spec]), f"{sys.argv[1]}/inference")
    answers.say(versions=versions("paddlepaddle"))


if __name__ == "__main__":
    main()
