"""Which attacks run under which norm, cheap to strong: one table of methods, one of suites.

``repeats``, ``steps`` and the step sizes go to the library; ``restarts`` and ``bisection`` are the campaign's own:
how many random starts each radius gets, and how many halvings pull a found example towards its input. Restarts take the
``losses`` in turn: the library's own (cross-entropy; FMN: margin), the margin to the strongest rival (``margin``), or
to the k-th strongest at the input (``rival k``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Literal

from certkit.errors import ConfigError, one_line, suggestion
from certkit.records import AttackSpec, Norm

OWN = frozenset({"restarts", "bisection", "losses"})

Setting = float | int | str | bool


@dataclass(frozen=True, slots=True)
class Method:
    """How the campaign treats an attack, and the Foolbox class that proposes its examples.

    ``floor`` is random noise at each radius: the measure that every other attack must beat, so it takes no sample away
    from them. ``bounded`` searches inside one radius, on those not yet broken there. ``minimum`` looks for the nearest
    example and gets every sample.
    """

    role: Literal["floor", "minimum", "bounded"]
    norm: Norm
    kind: str


METHODS: Mapping[str, Method] = {
    "L2 noise floor": Method("floor", "l2", "L2ClippingAwareRepeatedAdditiveGaussianNoiseAttack"),
    "DDN": Method("minimum", "l2", "DDNAttack"),
    "L2-BIM": Method("bounded", "l2", "L2BasicIterativeAttack"),
    "L2-PGD": Method("bounded", "l2", "L2ProjectedGradientDescentAttack"),
    "Linf noise floor": Method("floor", "linf", "LinfRepeatedAdditiveUniformNoiseAttack"),
    "FMN-Linf": Method("minimum", "linf", "LInfFMNAttack"),
    "Linf-BIM": Method("bounded", "linf", "LinfBasicIterativeAttack"),
    "Linf-PGD": Method("bounded", "linf", "LinfProjectedGradientDescentAttack"),
}

# Cross-entropy leads to the likeliest wrong class, not to the nearest: on a small transformer on digits (l2, 0.5), 300
# steps of DDN under it alone left 71 samples of 360 standing; 200 steps shared with three rivals left 49.
QUICK = "library, rival 1, rival 2, rival 3"
STANDARD = "library, rival 1, rival 2, rival 3, rival 4, rival 5"

SUITES: Mapping[str, Mapping[Norm, Mapping[str, Mapping[str, Setting]]]] = {
    "quick": {
        "l2": {
            "L2 noise floor": {"repeats": 20},
            "DDN": {"steps": 50, "restarts": 4, "losses": QUICK, "bisection": 8},
            "L2-PGD": {"steps": 20, "rel_stepsize": 0.125, "restarts": 3, "losses": "library, margin", "bisection": 8},
        },
        "linf": {
            "Linf noise floor": {"repeats": 20},
            "FMN-Linf": {"steps": 50, "restarts": 4, "losses": QUICK, "bisection": 8},
            "Linf-PGD": {
                "steps": 20,
                "rel_stepsize": 0.125,
                "restarts": 3,
                "losses": "library, margin",
                "bisection": 8,
            },
        },
    },
    "standard": {
        "l2": {
            "L2 noise floor": {"repeats": 100},
            "L2-BIM": {"steps": 20, "rel_stepsize": 0.125, "bisection": 8},
            "DDN": {"steps": 200, "restarts": 6, "losses": STANDARD, "bisection": 10},
            "L2-PGD": {"steps": 100, "rel_stepsize": 0.025, "restarts": 6, "losses": STANDARD, "bisection": 10},
        },
        "linf": {
            "Linf noise floor": {"repeats": 100},
            "Linf-BIM": {"steps": 20, "rel_stepsize": 0.125, "bisection": 8},
            "FMN-Linf": {"steps": 200, "restarts": 6, "losses": STANDARD, "bisection": 10},
            "Linf-PGD": {"steps": 100, "rel_stepsize": 0.025, "restarts": 6, "losses": STANDARD, "bisection": 10},
        },
    },
}


def suite(name: str, norm: str) -> tuple[AttackSpec, ...]:
    """The attacks of a suite under a norm, with every setting. Raises ConfigError for a name that is not in the table.

    The library's version is part of each: another version is another attack, and so another plan.
    """
    if name not in SUITES:
        known = ", ".join(SUITES)
        raise ConfigError(
            f"suite {one_line(name)!r} is unknown; expected one of {known}{suggestion(str(name), SUITES)}"
        )
    table = {str(known): attacks for known, attacks in SUITES[name].items()}
    if norm not in table:
        known = ", ".join(table)
        raise ConfigError(f"norm {one_line(norm)!r} is unknown; expected one of {known}{suggestion(str(norm), table)}")
    library = f"foolbox {version('foolbox')}"
    return tuple(AttackSpec(name=one, library=library, settings=dict(given)) for one, given in table[norm].items())
