"""A chat template's syntax tree, prepared for the sandbox."""

from collections.abc import Callable
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.visitor import NodeTransformer

from jllama.text.template.meter import TemplateRefused
from jllama.text.template.traced_text import OWN, Traced


class Instrument(NodeTransformer):
    """Puts the meter into the syntax tree, where jinja2 has no hook to offer, and marks its own texts."""

    def __init__(self, environment: jinja2.Environment) -> None:
        self._environment = environment
        self._own_texts = 0
        self._visitors: dict[type, Callable[[Any], nodes.Node]] = {
            nodes.Const: self._own_text,
            nodes.For: self._loop,
            nodes.Concat: self._concat,
            nodes.Compare: self._compare,
            nodes.Getitem: self._getitem,
            nodes.Call: self._call,
            nodes.Filter: self._call,
            nodes.Test: self._call,
        }
        bodies = (nodes.Macro, nodes.CallBlock, nodes.Block)
        values = (nodes.List, nodes.Tuple, nodes.Dict)
        others = (nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends)
        self._visitors |= dict.fromkeys(bodies, self._pay_for_body)
        self._visitors |= dict.fromkeys(values, self._pay_for_value)
        self._visitors |= dict.fromkeys(others, self._refuse)

    def _paid(self, node: nodes.Expr, name: str) -> nodes.Filter:
        return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)

    def _own_text(self, node: Any) -> nodes.Node:
        if not isinstance(node.value, str):
            return node
        self._own_texts += 1
        name = f"own_text_{self._own_texts}"
        setattr(self._environment, name, Traced(node.value, OWN))
        return nodes.EnvironmentAttribute(name, lineno=node.lineno)

    def _pay_for_body(self, node: Any) -> Any:
        self.generic_visit(node)
        static = sum(len(data.data) for part in node.body for data in _texts(part))
        price = nodes.Const(static, lineno=node.lineno)
        payment = nodes.Output([self._paid(price, " turn")], lineno=node.lineno)
        node.body.insert(0, payment)
        return node

    def _loop(self, node: Any) -> nodes.Node:
        node = self._pay_for_body(node)
        node.iter = self._paid(node.iter, " items")
        return node

    def _call(self, node: Any) -> nodes.Node:
        self.generic_visit(node)
        if node.dyn_args is not None:
            node.dyn_args = self._paid(node.dyn_args, " items")
        return node

    def _pay_for_value(self, node: Any) -> nodes.Node:
        # The target of `{% set a, b = … %}` is a Tuple too, and takes no filter.
        if getattr(self.generic_visit(node), "ctx", "load") != "load":
            return node
        return self._paid(node, " value")

    def _concat(self, node: Any) -> nodes.Node:
        self.generic_visit(node)
        return self._paid(nodes.List(node.nodes, lineno=node.lineno), " concat")

    def _compare(self, node: Any) -> nodes.Node:
        self.generic_visit(node)
        node.expr = self._paid(node.expr, " step")
        for operand in node.ops:
            operand.expr = self._paid(operand.expr, " step")
        return node

    def _getitem(self, node: Any) -> nodes.Node:
        computed = not isinstance(node.arg, nodes.Const)
        self.generic_visit(node)
        if isinstance(node.arg, nodes.Slice):
            return self._paid(node, " cut")
        if computed:
            node.node = self._paid(node.node, " step")
        return node

    def _refuse(self, node: Any) -> nodes.Node:
        raise TemplateRefused(f"it reads other templates (line {node.lineno})")

    def get_visitor(self, node: nodes.Node) -> Any:
        return self._visitors.get(type(node))


def _texts(node: nodes.Node) -> list[nodes.TemplateData]:
    if isinstance(node, nodes.TemplateData):
        return [node]
    return list(node.find_all(nodes.TemplateData))
