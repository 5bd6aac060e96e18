"""The graph executed on bounds: one step of the ledger per operator, from the input box to the logits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor
from torch.fx import Node

from certkit.bounds.ledger import Ledger, Matrix, Pairs, pair_gains
from certkit.bounds.number import Up
from certkit.bounds.spectral import absolute_sums, largest, row_differences
from certkit.engine.execute import aten
from certkit.engine.head import head_of
from certkit.engine.program import Program, check_value
from certkit.engine.readers import read
from certkit.engine.reading import Graph, Reading, array
from certkit.errors import RecordError, Refusal


@dataclass(slots=True)
class Interpreter:
    """Runs one program on bounds, as often as asked; measurements of weights are made once."""

    program: Program
    _cache: dict[tuple[str, str], dict[str, float]] = field(default_factory=dict)

    def __call__(
        self,
        norm: str,
        box: tuple[float, float],
        *,
        token_size: float | None = None,
        arithmetic: str = "float64",
        fixed: Mapping[str, Tensor] | None = None,
    ) -> Ledger:
        """The ledger of this program for a threat in ``norm``, l2, linf or token, on inputs in ``box``.

        ``token_size`` is the length of the longest token that the domain holds: for embeddings moved by up to r, r more than
        the longest row of their table.
        ``fixed`` replaces the softmax weights of some attention operators, by node name, by constant weights
        (..., queries, keys): the ablations. Raises NoRule or Refusal for what has no bound.
        """
        graph = Graph(self.program, arithmetic, self._cache)
        first = self.program.input
        attributes = {"shape": list(self.program.shapes[first]), "norm": norm, "low": box[0], "high": box[1]}
        longest = {} if token_size is None else {"token_size": token_size}
        graph.step("input", first, [], attributes, longest)
        for node in self.program.nodes:
            weights = (fixed or {}).get(node.name)
            check_value(node, self.program.dtype)
            reading = read(node, graph) if weights is None else fixed_reading(node, graph, weights)
            if reading is not None:  # else what reads the value takes it in, as a softmax its mask
                graph.step(reading.rule, node, reading.inputs, reading.attributes, reading.evidence)
        return Ledger(arithmetic, tuple(graph.steps), self.program.output.name, self._pairs(graph))

    def _pairs(self, graph: Graph) -> Pairs:
        try:
            node, l2, l1 = self._head(graph)
            gain, error = pair_gains(graph.bounds[node.name], graph.bounds[self.program.output.name], l2, l1)
        except RecordError as problem:
            raise Refusal(str(problem)) from None
        except ValueError as problem:  # a difference of two rows that is beyond float64
            raise Refusal(f"the differences of the logits have no bound here: {problem}") from None
        return Pairs(node.name, l2, l1, gain, error)

    def _head(self, graph: Graph) -> tuple[Node, Matrix | None, Matrix | None]:
        """The value that the last linear map reads, with the norms of its rows' differences; factors after it included."""
        head = head_of(graph)
        if head is None:
            return self.program.output, None, None
        first, second = (
            tuple(tuple(Up.of(float(n)) * head.factor for n in row) for row in matrix)
            for matrix in row_differences(array(graph.constants[head.weight]))
        )
        return head.x, first, second


def fixed_reading(node: Node, graph: Graph, weights: Tensor) -> Reading:
    """Attention with constant weights: how much they put on one key, and how far a row may be from summing to 1."""
    if node.target is not aten.scaled_dot_product_attention.default:
        raise Refusal(f"{node.name} is not an attention operator; its weights cannot be fixed")
    w = array(weights).reshape(-1, *weights.shape[-2:])
    columns = max((largest(absolute_sums(head, axis=0)) for head in w), default=0.0)
    rows = max((largest(absolute_sums(head, axis=1)) for head in w), default=0.0)
    return graph.reading("fixed-attention", node, [node.args[2]], {}, {"column_sum": columns, "row_sum": rows})
