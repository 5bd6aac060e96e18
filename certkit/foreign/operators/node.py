"""A node's attributes and operands, and the table that operators are entered in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from certkit.errors import NoRule, Refusal, one_line

Value = Tensor | NDArray[Any] | None


@dataclass(slots=True)
class Attributes:
    """The attributes of a node, each taken once."""

    label: str
    operator: str
    given: dict[str, Any]
    outputs: int
    opset: int

    def take(self, name: str, default: Any = None) -> Any:
        found = self.given.pop(name, default)
        return found.decode() if isinstance(found, bytes) else found

    def only(self, name: str, expected: Any) -> None:
        """Take an attribute that may have one value. Raises NoRule."""
        if (found := self.take(name, expected)) != expected:
            self.refuse(f"with {name} = {one_line(found, 40)}")

    def refuse(self, what: str) -> NoReturn:
        raise NoRule(f"{self.label}: ONNX operator {self.operator} {what} has no rule")

    def finish(self) -> None:
        if self.given:
            self.refuse(f"with {', '.join(map(one_line, sorted(self.given)))}")

    def constant(self, value: Value, what: str) -> NDArray[Any]:
        """An input that must not depend on the network's input."""
        if isinstance(value, Tensor) or value is None:
            raise Refusal(
                f"{self.label}: {what} of ONNX operator {self.operator} depends on the input; that has no rule"
            )
        return value

    def integers(self, value: Value, what: str) -> list[int]:
        return [int(n) for n in np.asarray(self.constant(value, what)).reshape(-1)]

    def either(self, value: Value, name: str) -> Value:
        """An operand that is an input in newer operator sets and an attribute in older ones."""
        found = self.take(name)
        return value if found is None else np.asarray(found)

    def axes(self, value: Value) -> list[int] | None:
        """Axes, an attribute in older operator sets and an input in newer ones."""
        if value is None:
            found = self.take("axes")
            return None if found is None else [int(n) for n in found]
        return self.integers(value, "axes")


Translation = Callable[..., Any]
OPERATORS: dict[str, Translation] = {}


def translates(*names: str) -> Callable[[Translation], Translation]:
    """Enter a translation for some operators."""

    def enter(translation: Translation) -> Translation:
        OPERATORS.update(dict.fromkeys(names, translation))
        return translation

    return enter


def tensor(value: Value) -> Any:
    """An operand: arrays of one entry as numbers, which every shape takes; other arrays as tensors."""
    if isinstance(value, Tensor):
        return value
    array = np.asarray(value)
    return array.item() if array.size == 1 and array.ndim < 2 else torch.from_numpy(np.array(array))
