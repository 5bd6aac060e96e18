"""Which attacks run under which norm, cheap to strong: one table of methods, one of suites.

``steps``, ``repeats`` and the like go to the attack; ``restarts`` and ``bisection`` are the campaign's own: how many
random starts each radius gets, and how many halvings pull a found example towards its input. Restarts take the
``losses`` in turn: the attack's own (``library``), the margin to the strongest rival (``margin``), or to the k-th
strongest at the input (``rival k``). For APGD-T and FAB-T the restart itself names the rival.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Literal

from certkit import __version__
from certkit.errors import ConfigError, one_line, suggestion
from certkit.records import AttackNorm, AttackSpec, Role

from .library import ALIASES, CLASSES, Knowledge

OWN = frozenset({"restarts", "bisection", "losses"})

Setting = float | int | str | bool


@dataclass(frozen=True, slots=True)
class Method:
    """How the campaign treats an attack, and what proposes its examples: a Foolbox class, or a function of certkit's.

    ``floor`` is random noise at each radius: the measure that every other attack must beat, so it takes no sample away
    from them. ``bounded`` searches inside one radius, on those not yet broken there. ``minimum`` looks for the nearest
    example and gets every sample. ``guided`` reads the certificate and only adds. ``together``: what happens in a row
    depends on no other sample of its batch but by rounding and by when it is left behind, so that several restarts may
    stand in one.
    """

    role: Role
    norms: tuple[AttackNorm, ...]
    kind: str
    source: Literal["foolbox", "certkit"] = "foolbox"
    knowledge: Knowledge = "white-box"
    together: bool = False


ALL: tuple[AttackNorm, ...] = ("l2", "linf", "l1", "l0", "token")
SMOOTH: tuple[AttackNorm, ...] = ("l2", "linf", "l1", "token")

METHODS: Mapping[str, Method] = {
    "L2 noise floor": Method(
        "floor", ("l2",), "L2ClippingAwareRepeatedAdditiveGaussianNoiseAttack", knowledge="decision"
    ),
    "Linf noise floor": Method("floor", ("linf",), "LinfRepeatedAdditiveUniformNoiseAttack", knowledge="decision"),
    "noise floor": Method("floor", ("l1", "l0", "token"), "noise", "certkit", "decision"),
    "DDN": Method("minimum", ("l2",), "DDNAttack", together=True),
    "FMN-Linf": Method("minimum", ("linf",), "LInfFMNAttack", together=True),
    "FMN-L1": Method("minimum", ("l1",), "L1FMNAttack", together=True),
    "FMN-L0": Method("minimum", ("l0",), "L0FMNAttack", together=True),
    "L2-BIM": Method("bounded", ("l2",), "L2BasicIterativeAttack", together=True),
    "Linf-BIM": Method("bounded", ("linf",), "LinfBasicIterativeAttack", together=True),
    "L2-PGD": Method("bounded", ("l2",), "L2ProjectedGradientDescentAttack", together=True),
    "Linf-PGD": Method("bounded", ("linf",), "LinfProjectedGradientDescentAttack", together=True),
    "L1-PGD": Method("bounded", ("l1",), "L1ProjectedGradientDescentAttack", together=True),
    "HopSkipJump": Method("minimum", ("l2", "linf"), "HopSkipJumpAttack", knowledge="decision"),
    "APGD-CE": Method("bounded", SMOOTH, "apgd_ce", "certkit", together=True),
    "APGD-T": Method("bounded", SMOOTH, "apgd_targeted", "certkit", together=True),
    "FAB-T": Method("minimum", SMOOTH, "fab", "certkit"),
    "sigma-zero": Method("minimum", ("l0",), "sigma_zero", "certkit"),
    "Square": Method("bounded", ("l2", "linf"), "square", "certkit", "score"),
    "transfer": Method("bounded", SMOOTH, "transfer", "certkit", "transfer"),
    "certificate-guided": Method("guided", ("l2", "linf"), "apgd_targeted", "certkit"),
}

# Cross-entropy leads to the likeliest wrong class, not to the nearest: on a small transformer on digits (l2, 0.5), 300
# steps of DDN under it alone left 71 samples of 360 standing; 200 steps shared with three rivals left 49.
QUICK = "library, rival 1, rival 2, rival 3"
STANDARD = "library, rival 1, rival 2, rival 3, rival 4, rival 5"

_PGD: Mapping[str, Setting] = {
    "steps": 20,
    "rel_stepsize": 0.125,
    "restarts": 3,
    "losses": "library, margin",
    "bisection": 8,
}
_CE: Mapping[str, Setting] = {"steps": 100, "bisection": 8}
_T: Mapping[str, Setting] = {"steps": 100, "restarts": 9, "bisection": 8}
_BRIEF: Mapping[str, Setting] = {"steps": 30, "restarts": 3, "bisection": 8}
_DECISIONS: Mapping[str, Setting] = {"steps": 8, "initial_gradient_eval_steps": 20, "max_gradient_eval_steps": 60}

Suite = Mapping[AttackNorm, Mapping[str, Mapping[str, Setting]]]

SUITES: Mapping[str, Suite] = {
    "quick": {
        "l2": {
            "L2 noise floor": {"repeats": 20},
            "DDN": {"steps": 50, "restarts": 4, "losses": QUICK, "bisection": 8},
            "L2-PGD": _PGD,
        },
        "linf": {
            "Linf noise floor": {"repeats": 20},
            "FMN-Linf": {"steps": 50, "restarts": 4, "losses": QUICK, "bisection": 8},
            "Linf-PGD": _PGD,
        },
        "l1": {
            "noise floor": {"repeats": 20},
            "FMN-L1": {"steps": 50, "restarts": 4, "losses": QUICK, "bisection": 8},
            "APGD-T": _BRIEF,
        },
        "l0": {"noise floor": {"repeats": 20}, "sigma-zero": {"steps": 100, "restarts": 2, "losses": "margin"}},
        "token": {"noise floor": {"repeats": 20}, "FAB-T": _BRIEF, "APGD-T": _BRIEF},
    },
    "standard": {
        "l2": {
            "L2 noise floor": {"repeats": 100},
            "DDN": {"steps": 100, "restarts": 4, "losses": QUICK, "bisection": 10},
            "APGD-CE": _CE,
            "APGD-T": _T,
            "Square": {"queries": 500},
            "HopSkipJump": {"constraint": "l2", **_DECISIONS},
        },
        "linf": {
            "Linf noise floor": {"repeats": 100},
            "FMN-Linf": {"steps": 100, "restarts": 4, "losses": QUICK, "bisection": 10},
            "APGD-CE": _CE,
            "APGD-T": _T,
            "Square": {"queries": 500},
            "HopSkipJump": {"constraint": "linf", **_DECISIONS},
        },
        "l1": {
            "noise floor": {"repeats": 100},
            "FMN-L1": {"steps": 200, "restarts": 6, "losses": STANDARD, "bisection": 10},
            "APGD-CE": _CE,
            "APGD-T": _T,
        },
        "l0": {
            "noise floor": {"repeats": 100},
            "sigma-zero": {"steps": 300, "restarts": 4, "losses": "margin, rival 1, rival 2, rival 3"},
            "FMN-L0": {"steps": 200, "restarts": 2, "losses": "library, rival 1"},
        },
        "token": {
            "noise floor": {"repeats": 100},
            "FAB-T": {"steps": 100, "restarts": 5, "bisection": 8},
            "APGD-CE": _CE,
            "APGD-T": _T,
        },
    },
    "full": {
        "l2": {
            "L2 noise floor": {"repeats": 200},
            "DDN": {"steps": 500, "restarts": 10, "losses": f"{STANDARD}, margin", "bisection": 12},
            "FAB-T": {"steps": 100, "restarts": 9, "bisection": 8},
            "APGD-CE": {"steps": 100, "restarts": 5, "bisection": 8},
            "APGD-T": {"steps": 100, "restarts": 18, "bisection": 8},
            "Square": {"queries": 5000},
            "HopSkipJump": {"steps": 16, "constraint": "l2"},
        },
        "linf": {
            "Linf noise floor": {"repeats": 200},
            "FMN-Linf": {"steps": 500, "restarts": 10, "losses": f"{STANDARD}, margin", "bisection": 12},
            "FAB-T": {"steps": 100, "restarts": 9, "bisection": 8},
            "APGD-CE": {"steps": 100, "restarts": 5, "bisection": 8},
            "APGD-T": {"steps": 100, "restarts": 18, "bisection": 8},
            "Square": {"queries": 5000},
            "HopSkipJump": {"steps": 16, "constraint": "linf"},
        },
        "l1": {
            "noise floor": {"repeats": 200},
            "FMN-L1": {"steps": 500, "restarts": 10, "losses": f"{STANDARD}, margin", "bisection": 12},
            "FAB-T": {"steps": 100, "restarts": 9, "bisection": 8},
            "APGD-CE": {"steps": 100, "restarts": 5, "bisection": 8},
            "APGD-T": {"steps": 100, "restarts": 18, "bisection": 8},
        },
        "l0": {
            "noise floor": {"repeats": 200},
            "sigma-zero": {"steps": 1000, "restarts": 8, "losses": "margin, rival 1, rival 2, rival 3"},
            "FMN-L0": {"steps": 500, "restarts": 4, "losses": "library, rival 1, rival 2, rival 3"},
        },
        "token": {
            "noise floor": {"repeats": 200},
            "FAB-T": {"steps": 200, "restarts": 9, "bisection": 10},
            "APGD-CE": {"steps": 100, "restarts": 5, "bisection": 8},
            "APGD-T": {"steps": 100, "restarts": 18, "bisection": 8},
        },
    },
}
NONE = "none"
TRANSFER: Mapping[str, Setting] = {"steps": 100, "restarts": 3, "bisection": 8}
GUIDED: Mapping[str, Setting] = {"steps": 100, "rounds": 8, "restarts": 6, "bisection": 10}
ALLOWED: Mapping[Knowledge, tuple[Knowledge, ...]] = {
    "white-box": ("white-box", "score", "decision", "transfer"),
    "score": ("score", "decision", "transfer"),
    "decision": ("decision", "transfer"),
    "transfer": ("transfer",),
}


def method_of(name: str) -> Method:
    """How the attack of this name is treated: one of the table, or any class of the library. Raises ConfigError."""
    if name in METHODS:
        return METHODS[name]
    kind = ALIASES.get(name, name)
    if kind not in CLASSES:
        near = suggestion(name, [*METHODS, *CLASSES, *ALIASES])
        raise ConfigError(
            f"attack {one_line(name)!r} is unknown; expected one of {', '.join(METHODS)}, or a class of Foolbox{near}"
        )
    entry = CLASSES[kind]
    return Method(entry.role, ALL if entry.norm is None else (entry.norm,), kind, "foolbox", entry.knowledge)


def suite(name: str, norm: str) -> tuple[AttackSpec, ...]:
    """The attacks of a suite under a norm, with every setting; ``none`` has none.

    Raises ConfigError for a name that is not in the table.
    """
    if name == NONE:
        return ()
    if name not in SUITES:
        known = ", ".join((*SUITES, NONE))
        raise ConfigError(
            f"suite {one_line(name)!r} is unknown; expected one of {known}{suggestion(str(name), (*SUITES, NONE))}"
        )
    table = {str(known): attacks for known, attacks in SUITES[name].items()}
    if norm not in table:
        known = ", ".join(table)
        raise ConfigError(f"norm {one_line(norm)!r} is unknown; expected one of {known}{suggestion(str(norm), table)}")
    return tuple(spec_of(one, given) for one, given in table[norm].items())


def spec_of(name: str, settings: Mapping[str, Setting]) -> AttackSpec:
    """An attack with its settings. The library's version is part of it: another version is another attack."""
    library = f"foolbox {version('foolbox')}" if method_of(name).source == "foolbox" else f"certkit {__version__}"
    return AttackSpec(name=name, library=library, settings=dict(settings))


def named(text: str) -> AttackSpec:
    """An attack as a person writes it: ``L2CarliniWagnerAttack`` or ``DDN:steps=100,restarts=2``. Raises ConfigError."""
    name, _, rest = text.partition(":")
    settings: dict[str, Setting] = {}
    for part in filter(None, (one.strip() for one in rest.split(","))):
        key, equals, value = part.partition("=")
        if not equals or not key:
            raise ConfigError(
                f"attack {one_line(text, 80)!r}: {one_line(part, 40)!r} is no setting; expected steps=100"
            )
        settings[key.strip()] = _value(value.strip())
    return spec_of(name.strip(), settings)


def _value(text: str) -> Setting:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            value = kind(text)
        except ValueError:
            continue
        return value if math.isfinite(value) else text
    return text


def chosen(
    name: str,
    norm: AttackNorm,
    extra: Sequence[str],
    knowledge: Knowledge,
    *,
    transfer: bool,
    guide: bool,
) -> tuple[AttackSpec, ...]:
    """What a plan will run: the suite, what was asked for by name, the transfer from a surrogate, the guided attack.

    An attack that knows more than the threat allows is left out of a suite, and refused where it was asked for by name.
    Raises ConfigError also for an attack of another norm, one that stands twice, and when nothing is left.
    """
    asked = [named(text) for text in extra]
    wanted = [spec for spec in suite(name, norm) if method_of(spec.name).knowledge in ALLOWED[knowledge]]
    wanted += asked
    wanted += [spec_of("transfer", TRANSFER)] * (transfer and not any(spec.name == "transfer" for spec in wanted))
    wanted += [spec_of("certificate-guided", GUIDED)] * guide
    for spec in wanted:
        method = method_of(spec.name)
        if norm not in method.norms:
            raise ConfigError(f"attack {spec.name!r} is for {', '.join(method.norms)}; the threat is in {norm}")
        if method.knowledge not in ALLOWED[knowledge]:
            raise ConfigError(
                f"attack {spec.name!r} is {method.knowledge}; the threat allows {knowledge} knowledge only"
            )
        if method.kind == "transfer" and not transfer:
            raise ConfigError("attack 'transfer' needs a surrogate: another network to take its examples from")
        if method.role == "guided" and not guide:
            raise ConfigError("attack 'certificate-guided' needs a certificate to be guided by")
    names = [spec.name for spec in wanted]
    if twice := sorted({one for one in names if names.count(one) > 1}):
        raise ConfigError(f"attack {twice[0]!r} stands twice; expected each once (raise its restarts instead)")
    if not any(method_of(one).role != "floor" for one in names):
        raise ConfigError(
            f"suite {name!r} holds no attack with {knowledge} knowledge under {norm}; name one with attacks"
        )
    return tuple(wanted)
