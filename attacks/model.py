"""The model as a campaign runs it: in evaluation mode, without gradients of its parameters, put back as it was found.

Shape suffixes: B batch, K classes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from certkit.engine.kernels import deployed
from certkit.errors import CertkitError, Refusal, one_line
from certkit.machine import pinned
from certkit.shards import Images, Whole

UNDEFINED = -1


class TimeUp(Exception):
    """The time that a unit of work may take is over; no error of the user's, the unit is marked."""


def out_of_memory(error: BaseException) -> bool:
    """Whether this is the system refusing memory, in one of the ways in which torch says so."""
    known = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    return known or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))


class Classifier(nn.Module):
    """A module whose output is known to be logits, one row per sample; its failures are the user's to read."""

    def __init__(
        self, module: nn.Module, device: torch.device, arrived_training: int = 0, *, tied: bool = False
    ) -> None:
        super().__init__()
        self.tied = tied  # its rows belong to one batch, which it must be shown whole
        self.arrived_training = arrived_training  # how many of its modules came in training mode
        self.module = module
        self.device = device
        self.dtype = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)
        self.queries = 0  # samples run so far; for the log
        self._deadline: float | None = None

    @contextmanager
    def within(self, deadline: float | None) -> Iterator[None]:
        """No forward begins after the deadline (``time.monotonic()``): it raises TimeUp instead."""
        self._deadline = deadline
        try:
            yield
        finally:
            self._deadline = None

    def forward(self, x: Tensor) -> Tensor:
        """Images in float32 -> logits. Raises Refusal when the module fails or gives anything else."""
        if self._deadline is not None and time.monotonic() > self._deadline:
            raise TimeUp
        self.queries += len(x)
        try:
            logits_BK = self.module(x.to(self.dtype))
        except CertkitError:
            raise
        except Exception as error:
            if out_of_memory(error):
                raise
            raise Refusal(
                f"the model failed on a batch of shape {tuple(x.shape)}: {type(error).__name__}: {one_line(error, 160)}"
            ) from None
        if not isinstance(logits_BK, Tensor):
            raise Refusal(f"the model returned a {type(logits_BK).__name__}; expected a tensor of logits (N, classes)")
        if logits_BK.ndim != 2 or len(logits_BK) != len(x) or logits_BK.shape[1] < 2:
            raise Refusal(
                f"the model returned shape {tuple(logits_BK.shape)} for {len(x)} samples; expected logits (N, classes)"
            )
        if not logits_BK.is_floating_point():
            raise Refusal(f"the model returned {logits_BK.dtype}; expected logits in a floating-point type")
        return logits_BK

    def classes(self, images: Images) -> int:
        """How many classes the model tells apart."""
        with torch.no_grad():
            return int(self(torch.from_numpy(images).to(self.device)).shape[1])

    def alone(self, images: Images, labels: Whole) -> Whole:
        """The prediction on each sample by itself, one forward each: what a campaign records.

        A sum in floating point depends on how its terms are grouped, and so a logit on the batch around it. Alone, a
        stored example can be replayed by anyone, with whatever block size; and the certificate's program, too, takes
        one sample at a time. On a CPU it runs on the kernels that a claim about execution speaks of.
        """
        with deployed() if self.device.type == "cpu" and len(images) else nullcontext():
            one = [self.batch(images[row : row + 1], labels[row : row + 1]) for row in range(len(images))]
        return np.concatenate(one) if one else np.zeros(0, np.int64)

    def batch(self, images: Images, labels: Whole) -> Whole:
        """The prediction on each sample of one batch; see ``predictions``. Fast, and for searching only, because rounding
        depends on the batch a sample stands in."""
        if not len(images):
            return np.zeros(0, np.int64)
        with torch.no_grad():
            logits_BK = self(torch.from_numpy(images).to(self.device))
        return predictions(logits_BK, torch.from_numpy(labels).to(self.device)).cpu().numpy()


def rivals(logits_BK: Tensor, labels: Tensor) -> Tensor:
    """The strongest class of each row other than its label."""
    rows = torch.arange(len(logits_BK), device=logits_BK.device)
    return logits_BK.detach().index_put((rows, labels), logits_BK.new_tensor(-torch.inf)).argmax(dim=1)


def predictions(logits_BK: Tensor, labels: Tensor) -> Tensor:
    """The label where it beats every other class, else the strongest of the others; -1 where a logit is NaN.

    So a tie counts as an error: a certificate asks for a unique argmax, and the prediction of a tie is the rival.
    """
    rows = torch.arange(len(logits_BK), device=logits_BK.device)
    rival = rivals(logits_BK, labels)
    right = logits_BK[rows, labels] > logits_BK[rows, rival]
    undefined = torch.full_like(labels, UNDEFINED)
    return torch.where(logits_BK.isnan().any(dim=1), undefined, torch.where(right, labels, rival))


@contextmanager
def searching() -> Iterator[None]:
    """The settings of ``deployed``, but with oneDNN and every kernel of attention: up to three times as fast."""
    onednn = torch.backends.mkldnn
    with deployed(), ExitStack() as after:
        windows = onednn.conv  # type: ignore[attr-defined]
        after.callback(setattr, windows, "fp32_precision", windows.fp32_precision)
        windows.fp32_precision = "ieee"
        after.callback(onednn.set_flags, *onednn.set_flags(True, True))  # type: ignore[no-untyped-call]
        after.enter_context(sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]))
        yield


@contextmanager
def prepared(module: nn.Module, device: torch.device, threads: int) -> Iterator[Classifier]:
    """The model ready to be attacked; its modes, its device, ``requires_grad`` and torch's threads return as they were.

    The threads are pinned because the grouping of a sum depends on their number; on a CPU the settings too, whatever the
    caller's are. Searching takes torch's fastest kernels; what counts is run by ``Classifier.alone``.
    """
    modes = {one: one.training for one in module.modules()}
    wanted = {parameter: parameter.requires_grad for parameter in module.parameters()}
    home = next((parameter.device for parameter in module.parameters()), device)
    tf32 = torch.backends.cudnn.allow_tf32
    try:
        torch.backends.cudnn.allow_tf32 = False
        module.to(device).eval()
        module.requires_grad_(False)
        with pinned(threads), searching() if device.type == "cpu" else nullcontext():
            yield Classifier(module, device, arrived_training=sum(modes.values()))
    finally:
        for parameter, grad in wanted.items():
            parameter.requires_grad_(grad)
        module.to(home)
        for one, training in modes.items():
            one.training = training
        torch.backends.cudnn.allow_tf32 = tf32
