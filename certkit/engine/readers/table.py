"""The table of readers: for each ATen operator, which rule covers it and what that rule must know.

A reader looks at one node of the graph and measures its weights; it never decides a bound. It gives None for a value
without a bound of its own, such as scores masked with minus infinity, when every reader of that value takes it in. An
operator without a reader is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch.fx import Node

from certkit.engine.program import REMEDY, module_path, operator_name
from certkit.engine.reading import Graph, Reading
from certkit.errors import NoRule

Reader = Callable[[Node, Graph], Reading | None]
R = TypeVar("R", bound=Reader)
READERS: dict[Any, Reader] = {}


def reads(*targets: Any) -> Callable[[R], R]:
    """Enter a reader for some operators."""

    def enter(reader: R) -> R:
        for target in targets:
            READERS[target] = reader
        return reader

    return enter


def read(node: Node, graph: Graph) -> Reading | None:
    """What the node's rule must know. Raises NoRule, naming operator, module and remedy, when no reader covers it."""
    if node.target not in READERS:
        raise NoRule(
            f"{module_path(node)}: no rule for {operator_name(node)}; certkit refuses what it cannot bound. "
            f"To certify this model, {REMEDY}"
        )
    return READERS[node.target](node, graph)


def argument(node: Node, position: int, name: str, default: Any = None) -> Any:
    """An argument of a node, given by position or by name."""
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)
