"""ONNX operators as torch computes them. Attributes that no line reads are refused: nothing is left out in silence.

Source: the operators' definitions in https://onnx.ai/onnx/operators/, sets 9 to 23.
"""

from certkit.foreign.operators import entries, layers, shapes  # noqa: F401 - entered in OPERATORS by being imported
from certkit.foreign.operators.node import OPERATORS as OPERATORS
from certkit.foreign.operators.node import Attributes as Attributes
from certkit.foreign.operators.node import Value as Value
