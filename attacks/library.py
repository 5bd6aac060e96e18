"""Every attack of Foolbox 3.3.4 by the name of its class: how a campaign treats it, under which norm, with what knowledge.

Written out, so that a plan can be made without loading the library; a test compares the table with the library itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from certkit.records import AttackNorm

Knowledge = Literal["white-box", "score", "decision", "transfer"]


@dataclass(frozen=True, slots=True)
class Entry:
    """``bounded`` attacks search inside one radius, ``minimum`` ones for the nearest example.

    A minimum attack without a norm goes by no distance, or takes the campaign's: its examples are measured in any.
    """

    role: Literal["minimum", "bounded"]
    norm: AttackNorm | None
    knowledge: Knowledge


CLASSES: Mapping[str, Entry] = {
    "BinarizationRefinementAttack": Entry("minimum", None, "decision"),
    "BinarySearchContrastReductionAttack": Entry("minimum", None, "decision"),
    "BoundaryAttack": Entry("minimum", "l2", "decision"),
    "DDNAttack": Entry("minimum", "l2", "white-box"),
    "DatasetAttack": Entry("minimum", None, "decision"),
    "EADAttack": Entry("minimum", "l1", "white-box"),
    "GaussianBlurAttack": Entry("minimum", None, "decision"),
    "GenAttack": Entry("bounded", "linf", "score"),
    "HopSkipJumpAttack": Entry("minimum", None, "decision"),
    "InversionAttack": Entry("minimum", None, "decision"),
    "L0BrendelBethgeAttack": Entry("minimum", "l0", "white-box"),
    "L0FMNAttack": Entry("minimum", "l0", "white-box"),
    "L1AdamBasicIterativeAttack": Entry("bounded", "l1", "white-box"),
    "L1AdamProjectedGradientDescentAttack": Entry("bounded", "l1", "white-box"),
    "L1BasicIterativeAttack": Entry("bounded", "l1", "white-box"),
    "L1BrendelBethgeAttack": Entry("minimum", "l1", "white-box"),
    "L1FMNAttack": Entry("minimum", "l1", "white-box"),
    "L1FastGradientAttack": Entry("bounded", "l1", "white-box"),
    "L1MomentumIterativeFastGradientMethod": Entry("bounded", "l1", "white-box"),
    "L1ProjectedGradientDescentAttack": Entry("bounded", "l1", "white-box"),
    "L2AdamBasicIterativeAttack": Entry("bounded", "l2", "white-box"),
    "L2AdamProjectedGradientDescentAttack": Entry("bounded", "l2", "white-box"),
    "L2AdditiveGaussianNoiseAttack": Entry("bounded", "l2", "decision"),
    "L2AdditiveUniformNoiseAttack": Entry("bounded", "l2", "decision"),
    "L2BasicIterativeAttack": Entry("bounded", "l2", "white-box"),
    "L2BrendelBethgeAttack": Entry("minimum", "l2", "white-box"),
    "L2CarliniWagnerAttack": Entry("minimum", "l2", "white-box"),
    "L2ClippingAwareAdditiveGaussianNoiseAttack": Entry("bounded", "l2", "decision"),
    "L2ClippingAwareAdditiveUniformNoiseAttack": Entry("bounded", "l2", "decision"),
    "L2ClippingAwareRepeatedAdditiveGaussianNoiseAttack": Entry("bounded", "l2", "decision"),
    "L2ClippingAwareRepeatedAdditiveUniformNoiseAttack": Entry("bounded", "l2", "decision"),
    "L2ContrastReductionAttack": Entry("bounded", "l2", "decision"),
    "L2DeepFoolAttack": Entry("minimum", "l2", "white-box"),
    "L2FMNAttack": Entry("minimum", "l2", "white-box"),
    "L2FastGradientAttack": Entry("bounded", "l2", "white-box"),
    "L2MomentumIterativeFastGradientMethod": Entry("bounded", "l2", "white-box"),
    "L2ProjectedGradientDescentAttack": Entry("bounded", "l2", "white-box"),
    "L2RepeatedAdditiveGaussianNoiseAttack": Entry("bounded", "l2", "decision"),
    "L2RepeatedAdditiveUniformNoiseAttack": Entry("bounded", "l2", "decision"),
    "LInfFMNAttack": Entry("minimum", "linf", "white-box"),
    "LinearSearchBlendedUniformNoiseAttack": Entry("minimum", None, "decision"),
    "LinearSearchContrastReductionAttack": Entry("minimum", None, "decision"),
    "LinfAdamBasicIterativeAttack": Entry("bounded", "linf", "white-box"),
    "LinfAdamProjectedGradientDescentAttack": Entry("bounded", "linf", "white-box"),
    "LinfAdditiveUniformNoiseAttack": Entry("bounded", "linf", "decision"),
    "LinfBasicIterativeAttack": Entry("bounded", "linf", "white-box"),
    "LinfDeepFoolAttack": Entry("minimum", "linf", "white-box"),
    "LinfFastGradientAttack": Entry("bounded", "linf", "white-box"),
    "LinfMomentumIterativeFastGradientMethod": Entry("bounded", "linf", "white-box"),
    "LinfProjectedGradientDescentAttack": Entry("bounded", "linf", "white-box"),
    "LinfRepeatedAdditiveUniformNoiseAttack": Entry("bounded", "linf", "decision"),
    "LinfinityBrendelBethgeAttack": Entry("minimum", "linf", "white-box"),
    "NewtonFoolAttack": Entry("minimum", "l2", "white-box"),
    "PointwiseAttack": Entry("minimum", None, "decision"),
    "SaltAndPepperNoiseAttack": Entry("minimum", None, "decision"),
    "SparseL1DescentAttack": Entry("bounded", "l1", "white-box"),
    "SpatialAttack": Entry("minimum", None, "decision"),
    "VirtualAdversarialAttack": Entry("bounded", "l2", "white-box"),
}

ALIASES: Mapping[str, str] = {
    "AdamPGD": "LinfAdamProjectedGradientDescentAttack",
    "FGM": "L2FastGradientAttack",
    "FGSM": "LinfFastGradientAttack",
    "L1AdamPGD": "L1AdamProjectedGradientDescentAttack",
    "L1PGD": "L1ProjectedGradientDescentAttack",
    "L2AdamPGD": "L2AdamProjectedGradientDescentAttack",
    "L2PGD": "L2ProjectedGradientDescentAttack",
    "LinfAdamPGD": "LinfAdamProjectedGradientDescentAttack",
    "LinfPGD": "LinfProjectedGradientDescentAttack",
    "MIFGSM": "LinfMomentumIterativeFastGradientMethod",
    "PGD": "LinfProjectedGradientDescentAttack",
}
