"""The losses, and which nodes they compare."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fullquant.errors import ConfigError
from fullquant.training.distillation import DistillationTerm, default_node, l2, soft_label, total_loss
from tests.graphs import graph, small_classifier

TEACHER, STUDENT = torch.randn(6, 5), torch.randn(6, 5)


def test_soft_label_is_the_cross_entropy_less_the_teachers_entropy() -> None:
    p = F.softmax(TEACHER, 1)
    cross = -(p * F.log_softmax(STUDENT, 1)).sum(1).mean()
    entropy = -(p * F.log_softmax(TEACHER, 1)).sum(1).mean()
    torch.testing.assert_close(soft_label(STUDENT, TEACHER), cross - entropy)
    torch.testing.assert_close(soft_label(TEACHER, TEACHER), torch.tensor(0.0), atol=1e-6, rtol=0)


def test_soft_label_has_the_gradient_of_the_cross_entropy() -> None:
    a, b = STUDENT.clone().requires_grad_(), STUDENT.clone().requires_grad_()
    soft_label(a, TEACHER).backward()
    F.cross_entropy(b, F.softmax(TEACHER, 1)).backward()
    torch.testing.assert_close(a.grad, b.grad)


def test_l2_is_the_mean_square() -> None:
    torch.testing.assert_close(l2(STUDENT, TEACHER), ((STUDENT - TEACHER) ** 2).mean())


def test_alpha_weighs_the_terms() -> None:
    terms = [DistillationTerm("l2", "a", "b", 2.0), DistillationTerm("soft_label", "a", "b", 0.5)]
    expected = 2 * l2(STUDENT, TEACHER) + 0.5 * soft_label(STUDENT, TEACHER)
    torch.testing.assert_close(total_loss(terms, {"a": STUDENT}, {"b": TEACHER}), expected)


def test_unequal_shapes_and_unknown_losses_are_named() -> None:
    with pytest.raises(ConfigError, match=r"'a'.*'b'.*Distillation.node"):
        total_loss([DistillationTerm("l2", "a", "b")], {"a": STUDENT}, {"b": TEACHER[:, :3]})
    with pytest.raises(ConfigError, match="'fsp'"):
        DistillationTerm("fsp", "a", "b")
    with pytest.raises(ConfigError, match="alpha"):
        DistillationTerm("l2", "a", "b", 0.0)


def test_the_default_node_is_the_logits_in_front_of_a_softmax() -> None:
    assert default_node(small_classifier()) == "logits"


def test_the_default_node_is_behind_the_bias_of_a_matmul() -> None:
    constants = {"w": np.ones((8, 4), np.float32), "b": np.ones(4, np.float32)}
    nodes = [("MatMul", ["x", "w"], ["m"], {}), ("Add", ["m", "b"], ["a"], {}), ("Softmax", ["a"], ["y"], {})]
    assert default_node(graph(nodes, constants)) == "a"


def test_a_model_without_layers_asks_for_a_node() -> None:
    with pytest.raises(ConfigError, match=r"Distillation\.node"):
        default_node(graph([("Relu", ["x"], ["y"], {})], {}))
