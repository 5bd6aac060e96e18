"""auto_LiRPA as it is installed: 0.3 from the package registry, mended to run with today's torch, or 0.7 from git.

0.3 declares torch < 1.13. With torch 2 and numpy 2 it expects four names that are gone, and it computes the intervals of
one operator in float32. ``package`` gives all five back, once, before it is imported; nothing of it is changed on disk.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import io
import logging
import sys
import types
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import torch

from certkit.errors import one_line

MISSING = (
    "auto_LiRPA is not installed, so no independent bound stands beside certkit's own; "
    "get it with: pip install --no-deps auto_LiRPA==0.3 && pip install appdirs ninja packaging pyyaml tqdm"
)


class Unavailable(Exception):
    """auto_LiRPA cannot be used here; the text says what is missing and how to get it."""


@dataclass(frozen=True, slots=True)
class Package:
    """The names of auto_LiRPA that are used, and which release they come from."""

    version: str
    BoundedModule: Any
    BoundedTensor: Any
    PerturbationLpNorm: Any

    @property
    def old(self) -> bool:
        """Whether this is 0.3, with its own faults."""
        return self.version.startswith("0.3")


@cache
def package() -> Package:
    """auto_LiRPA, imported and mended. Raises Unavailable."""
    if importlib.util.find_spec("auto_LiRPA") is None:
        raise Unavailable(MISSING)
    _mend_torch_and_numpy()
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    depth = sys.getrecursionlimit()
    try:
        # It sets a warning filter of its own, which undoes one set here: what it prints is dropped instead.
        aside = io.StringIO()
        with contextlib.redirect_stdout(aside), contextlib.redirect_stderr(aside), warnings.catch_warnings():
            module = importlib.import_module("auto_LiRPA")
    except Exception as error:  # noqa: BLE001 - an unmended combination of releases may raise anything
        raise Unavailable(
            f"auto_LiRPA is installed and cannot be imported ({type(error).__name__}: {one_line(error, 160)})"
        ) from None
    finally:
        root.handlers[:], root.level = handlers, level  # auto_LiRPA configures everybody's logging
        sys.setrecursionlimit(depth)  # and lifts everybody's limit so far that deep JSON ends the process
    found = getattr(module, "__version__", None) or _installed()
    if str(found).startswith("0.3"):
        _mend_old()
    return Package(str(found), module.BoundedModule, module.BoundedTensor, module.PerturbationLpNorm)


def _installed() -> str:
    try:
        return version("auto_LiRPA")
    except PackageNotFoundError:
        return "unknown"


def _mend_torch_and_numpy() -> None:
    """Three names that 0.3 imports or uses, where they are gone."""
    if "numpy.lib.arraysetops" not in sys.modules and importlib.util.find_spec("numpy.lib.arraysetops") is None:
        gone = types.ModuleType("numpy.lib.arraysetops")
        gone.isin = np.isin  # type: ignore[attr-defined]
        sys.modules["numpy.lib.arraysetops"] = gone
    helper = importlib.import_module("torch.onnx.symbolic_helper")
    if not hasattr(helper, "_set_opset_version"):
        known = importlib.import_module("torch.onnx._internal.torchscript_exporter._globals").GLOBALS

        def set_opset_version(opset: int) -> None:
            known.export_onnx_opset_version = opset

        helper._set_opset_version = set_opset_version  # type: ignore[attr-defined]
    if not hasattr(torch._C.Node, "__getitem__"):

        def attribute(node: Any, key: str) -> Any:
            return getattr(node, node.kindOf(key))(key)

        setattr(torch._C.Node, "__getitem__", attribute)  # noqa: B010 - no such name is known to a type checker


def _mend_old() -> None:
    """What is mended in 0.3 itself: an argument that torch passes today, and intervals of 1/x in float64."""
    general = importlib.import_module("auto_LiRPA.bound_general").BoundedModule
    if "remove_duplicate" not in inspect.signature(general._named_members).parameters:
        own = general._named_members

        def named_members(self: Any, get_members_fn: Any, prefix: str = "", recurse: bool = True, **_: Any) -> Any:
            return own(self, get_members_fn, prefix, recurse)

        general._named_members = named_members
    nonlinear = importlib.import_module("auto_LiRPA.operators.nonlinear")

    def reciprocal(self: Any, *v: Any) -> tuple[torch.Tensor, torch.Tensor]:
        low, high = v[0]
        assert low.min() > 0, "Only positive values are supported in BoundReciprocal"
        return torch.reciprocal(high), torch.reciprocal(low)

    nonlinear.BoundReciprocal.interval_propagate = reciprocal


@contextlib.contextmanager
def quietly() -> Iterator[list[str]]:
    """Run auto_LiRPA in float64 throughout, silent; what it logs as an error is collected, as it names operators there.

    It makes helper tensors in torch's default type, which is float32 unless set.
    """
    said: list[str] = []

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    logger, handler = logging.getLogger("auto_LiRPA"), Collect(logging.ERROR)
    others, propagates = logger.handlers[:], logger.propagate
    default = torch.get_default_dtype()
    logger.handlers[:], logger.propagate = [handler], False
    torch.set_default_dtype(torch.float64)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield said
    finally:
        torch.set_default_dtype(default)
        logger.handlers[:], logger.propagate = others, propagates
