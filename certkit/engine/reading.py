"""What a reader sees of the graph, and the steps that it hands to the rules."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.fx import Node

from certkit.bounds.bound import Bound
from certkit.bounds.ledger import Step, facts_for
from certkit.bounds.number import Up
from certkit.bounds.rules import derive
from certkit.bounds.spectral import euclidean, frobenius, largest
from certkit.engine.program import Program, module_path, operator_name
from certkit.errors import RecordError, Refusal


@dataclass(frozen=True, slots=True)
class Reading:
    """Which rule covers a node, on which values, with which attributes and evidence."""

    rule: str
    inputs: list[str]
    attributes: dict[str, Any]
    evidence: Mapping[str, float | Up]


def array(tensor: Tensor) -> NDArray[np.float64]:
    """A constant as float64, exactly."""
    return tensor.detach().to("cpu").double().numpy()


class Graph:
    """A program while it is interpreted: bounds so far, constants, and measurements that are made once per weight."""

    def __init__(self, program: Program, arithmetic: str, cache: dict[tuple[str, str], dict[str, float]]) -> None:
        self.program = program
        self.arithmetic = arithmetic
        self.constants = program.constants
        self.bounds: dict[str, Bound] = {}
        self.steps: list[Step] = []
        self._cache = cache

    def depends(self, value: Any) -> bool:
        """Whether the value depends on the input."""
        return isinstance(value, Node) and value not in self.constants

    def shape(self, value: Any) -> tuple[int, ...]:
        """The value's shape for one sample, batch axis included."""
        return self.program.shapes[value]

    def name(self, value: Any) -> str:
        """The name of a value that depends on the input."""
        if not self.depends(value):
            raise Refusal(f"{value} is a constant where certkit expects a value that depends on the input")
        return str(value.name)

    def attributes(self, node: Node) -> dict[str, Any]:
        """The attribute that every rule reads: the output's shape."""
        return {"shape": list(self.shape(node))}

    def measured(self, key: tuple[str, str], measure: Callable[[], dict[str, float]]) -> dict[str, float]:
        """The measurement under this key, made at most once per program."""
        if key not in self._cache:
            self._cache[key] = measure()
        return self._cache[key]

    def reading(
        self, rule: str, node: Node, inputs: list[Any], attributes: dict[str, Any], evidence: Mapping[str, float | Up]
    ) -> Reading:
        """A reading whose inputs all depend on the network's input."""
        return Reading(rule, [self.name(x) for x in inputs], {**self.attributes(node), **attributes}, evidence)

    def operand(self, node: Node, value: Any, shape: tuple[int, ...] | None = None) -> str:
        """The name of an operand, broadcast to the node's shape; a constant becomes a step of its own.

        Raises Refusal where a value that depends on the input would be broadcast.
        """
        shape = self.shape(node) if shape is None else shape
        if self.depends(value):
            if self.shape(value) != shape:
                raise Refusal(
                    f"{module_path(node)}: {operator_name(node)} broadcasts {self.shape(value)} to {shape}; that has no rule"
                )
            return self.name(value)
        values = array(self.constants[value]) if isinstance(value, Node) else np.asarray(float(value))
        if values.size == 0:
            raise Refusal(
                f"{module_path(node)}: {operator_name(node)} reads a constant without entries; that has no rule"
            )
        full = np.broadcast_to(values, shape)
        tokens = euclidean(full.reshape(-1, shape[-1]), axis=1)
        evidence = {"l2": frobenius(np.ascontiguousarray(full)), "token": float(tokens.max()), "linf": largest(full)}
        if not isinstance(value, Node) and self.arithmetic == "float32":
            # exact in float64, as the two numbers are near each other (Sterbenz)
            evidence["rounding"] = abs(float(values) - float(np.float32(values)))
        attributes = {"shape": list(shape), "low": float(full.min()), "high": float(full.max())}
        return self.step("constant", node, [], attributes, evidence, suffix=f"constant{len(self.steps)}")

    def step(
        self,
        rule: str,
        node: Node,
        inputs: list[str],
        attributes: dict[str, Any],
        evidence: Mapping[str, float | Up],
        suffix: str = "",
    ) -> str:
        """Apply a rule, enter the step into the ledger, and return the name of its value."""
        name = f"{node.name}.{suffix}" if suffix else node.name
        op = operator_name(node) if node.op == "call_function" else node.op
        try:
            numbers = {key: Up.of(value) for key, value in evidence.items()}
            facts = facts_for(self.arithmetic, attributes, numbers)
            bound = derive(rule, [self.bounds[key] for key in inputs], facts)
        except (RecordError, ValueError) as error:  # as a rule words it: a constant of NaN, shapes it cannot read
            raise Refusal(f"{module_path(node)}: {op} has no bound here: {error}") from None
        self.steps.append(Step(name, op, module_path(node), rule, tuple(inputs), attributes, numbers, bound))
        self.bounds[name] = bound
        return name
