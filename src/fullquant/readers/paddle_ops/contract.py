"""What a rule of the table reads, makes and refuses, found in its source.

docs/operators.md is made of it, so that nothing is written down twice. A rule is a function of an OpContext. Its
syntax tree is walked, and that of the functions of the project that it hands the context to: the first argument of
`c.node` is an ONNX operator, of `c.flag`, `c.integers`, ... an attribute, of `c.unsupported` what is refused. Names
stand for all strings that are assigned to them, looped over, or passed in.
tests/readers/test_operators_document.py compares the result with what the rules do when they run.
"""

from __future__ import annotations

import ast
import inspect
import itertools
import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any

_GETTERS = frozenset(
    {"attr", "integer", "number", "flag", "text", "numbers", "integers", "dtype", "known_integers", "integers_or_value"}
)
_NODES = frozenset({"node", "nodes"})
_MADE_BY = {"cast": "Cast", "reshape": "Reshape"}
_NEEDS = {"static_dims": "needs known sizes", "required_constant": "needs constants", "known_integers": "",
          "constants": "needs constants"}  # fmt: skip

Strings = Mapping[str, frozenset[str]]


@dataclass
class Contract:
    """What a rule does. Lists are in the order of the source, without repetitions.

    meaning: first paragraph of the docstring. onnx: ONNX operators that it may emit. attributes: legacy names of the
    attributes it reads. refusals: reasons of its UnsupportedOperatorErrors. needs: what must be known beforehand.
    """

    meaning: str = ""
    onnx: list[str] = field(default_factory=list)
    attributes: list[str] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)
    needs: list[str] = field(default_factory=list)


def contract_of(rule: Callable[..., Any]) -> Contract:
    """The contract of a rule. Raises TypeError for a rule that is no plain function."""
    if not isinstance(rule, FunctionType):
        raise TypeError(f"{rule!r} is no plain function")
    found = Contract(meaning=_meaning(rule))
    _Walk(rule, {}, found, {rule}).walk()
    return found


def _meaning(rule: FunctionType) -> str:
    text = inspect.getdoc(rule) or inspect.getdoc(_maker(rule)) or ""
    return " ".join(text.split("\n\n")[0].split())


def _maker(rule: FunctionType) -> object:
    """The function that made a rule that is a closure."""
    return rule.__globals__.get(rule.__qualname__.split(".")[0])


class _Walk:
    """The walk over one function; `given` holds the strings passed for its parameters."""

    def __init__(self, function: FunctionType, given: Strings, found: Contract, seen: set[FunctionType]) -> None:
        self.function, self.found, self.seen = function, found, seen
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(function))).body
        self.tree = tree
        self.names: dict[str, frozenset[str]] = {}
        for name, value in inspect.getclosurevars(function).nonlocals.items():
            if isinstance(value, str):
                self.names[name] = frozenset({value})
        for name, parameter in inspect.signature(function).parameters.items():
            if isinstance(parameter.default, str):
                self.names[name] = frozenset({parameter.default})
        self.names.update(given)
        self._bind_locals()

    def walk(self) -> None:
        """Adds to the contract what the function does."""
        for node in _in_order(self.tree):
            if not isinstance(node, ast.Call):
                continue
            if isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name):
                if node.func.value.id == "c":
                    self._method(node.func.attr, node)
            elif isinstance(node.func, ast.Name):
                self._call(node.func.id, node)

    def _method(self, name: str, call: ast.Call) -> None:
        first = self._strings(call.args[0]) if call.args else frozenset()
        if name in _GETTERS:
            _add(self.found.attributes, sorted(first))
        if name in _NODES:
            _add(self.found.onnx, sorted(first))
        if name in _MADE_BY:
            _add(self.found.onnx, [_MADE_BY[name]])
        if _NEEDS.get(name):
            _add(self.found.needs, [_NEEDS[name]])
        if name == "unsupported":
            _add(self.found.refusals, [_pattern(call.args[0])])

    def _call(self, name: str, call: ast.Call) -> None:
        callee = self.function.__globals__.get(name)
        if not isinstance(callee, FunctionType) or callee in self.seen or "c" not in _parameters(callee):
            return
        names = _parameters(callee)
        passed = {names[i]: self._strings(argument) for i, argument in enumerate(call.args) if i < len(names)}
        passed |= {word.arg: self._strings(word.value) for word in call.keywords if word.arg}
        given = {key: strings for key, strings in passed.items() if strings}
        _Walk(callee, given, self.found, self.seen | {callee}).walk()

    def _bind_locals(self) -> None:
        for node in _in_order(self.tree):
            if isinstance(node, ast.Assign):
                for target in node.targets:
                    self._bind(target, [node.value])
            elif isinstance(node, ast.For | ast.comprehension) and isinstance(node.iter, ast.Tuple | ast.List):
                self._bind(node.target, node.iter.elts)

    def _bind(self, target: ast.expr, values: list[ast.expr]) -> None:
        if isinstance(target, ast.Name):
            strings = frozenset(itertools.chain.from_iterable(self._strings(value) for value in values))
            self.names[target.id] = self.names.get(target.id, frozenset()) | strings
        elif isinstance(target, ast.Tuple):
            for index, part in enumerate(target.elts):
                rows = [v.elts[index] for v in values if isinstance(v, ast.Tuple) and index < len(v.elts)]
                self._bind(part, rows)

    def _strings(self, expression: ast.expr) -> frozenset[str]:
        """All strings that an expression may stand for."""
        if isinstance(expression, ast.Constant):
            return frozenset({expression.value}) if isinstance(expression.value, str) else frozenset()
        if isinstance(expression, ast.IfExp):
            return self._strings(expression.body) | self._strings(expression.orelse)
        if isinstance(expression, ast.Name):
            return self.names.get(expression.id, frozenset())
        if isinstance(expression, ast.JoinedStr):
            parts = [self._strings(p.value if isinstance(p, ast.FormattedValue) else p) for p in expression.values]
            return frozenset("".join(choice) for choice in itertools.product(*parts))
        if isinstance(expression, ast.Subscript) and isinstance(expression.value, ast.Name):
            table = self.function.__globals__.get(expression.value.id)
            values = table.values() if isinstance(table, dict) else ()
            return frozenset(value for value in values if isinstance(value, str))
        return frozenset()


def _in_order(tree: ast.AST) -> Iterator[ast.AST]:
    """The nodes in the order of the source (ast.walk goes breadth first)."""
    yield tree
    for child in ast.iter_child_nodes(tree):
        yield from _in_order(child)


def _parameters(function: FunctionType) -> list[str]:
    return list(inspect.signature(function).parameters)


def _pattern(message: ast.expr) -> str:
    """A message with … where numbers and names are filled in."""
    if isinstance(message, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in message.values)
    return str(message.value) if isinstance(message, ast.Constant) else "…"


def _add(known: list[str], new: list[str]) -> None:
    known += [item for item in new if item not in known]
