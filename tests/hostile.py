"""Records whose every free string is an attempt to run something in the reader's browser or to deceive the eye.

``made`` builds any record from its type alone, so that no field can be forgotten, those that are added later among them.
"""

from __future__ import annotations

import base64
import functools
import io
import json
import types
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from PIL import Image
from pydantic import BaseModel, ValidationError

from certkit.records import Audit, Verdict
from certkit.records.pictures import FACTORS
from tests.audits import example_audit

PAYLOADS = {
    "script": "<script>window.pwned=1</script>",
    "closing": "</script></style></title><script>window.pwned=1</script>",
    "handler": '<img src=x onerror="window.pwned=1">',
    "attribute": "x\" onmouseover='window.pwned=1' autofocus onfocus=window.pwned=1 x=\"",
    "link": "javascript:window.pwned=1",
    "svg": "<svg><animate onbegin=window.pwned=1 attributeName=x dur=1s>",
    "template": "{{ 7 * 7 }}{% raw %}${window.pwned=1}",
    "comment": "<!--<script>--><![CDATA[",
    "bidi": "safe\u202egnihton\u2066\u200f\u200b",
    "ansi": "\x1b[31mred\x1b[0m\r\n\x00\x07\x7f\x9b",
    "formula": '=HYPERLINK("javascript:window.pwned=1";"@SUM(1)")\t+cmd|\' /C calc\'!A0',
    "workflow": "::error::x%0A::add-mask::y\n::stop-commands::z",
    "markdown": "[x](javascript:window.pwned=1) ![x](x) @everyone #1 `x` |---|",
    "entity": "&lt;script&gt;&#60;b&#62;",
    "style": "</style><style>@import url(//x.invalid/a);*{background:url(//x.invalid/b)}</style>",
    "loading": "<svg onload=window.pwned=1><image href=//x.invalid/c /><use href='data:image/svg+xml;base64,PHN2Zy8+#a'/></svg>",
    "data": "data:text/html;base64,PHNjcmlwdD53aW5kb3cucHduZWQ9MTwvc2NyaXB0Pg==",
    "frame": "<iframe srcdoc='<script>parent.pwned=1</script>'></iframe><base href=//x.invalid><meta http-equiv=refresh content=0>",
    "long": "W" * 280,
    "yaml": "x\n---\n- &a [*a]\n? !!python/object/apply:os.system ['x'] # %YAML",
    "tex": "$\\frac{1}{0}$ $x^2$ \\input{/etc/passwd}",
    "quoted": "'\\'' `\" \\\" $(touch pwned) ; touch pwned #",
}


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every string in a JSON value."""
    if isinstance(value, str):
        yield path
    elif isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(inner, (*path, key))


def at(value: Any, path: tuple[Any, ...] | list[Any]) -> Any:
    for key in path:
        value = value[key]
    return value


@functools.cache
def poisoned(payload: str, verdict: Verdict = "REFUTED") -> tuple[Audit, int]:
    """An audit with the payload in every string field that the schema lets anyone set, and how many those are."""
    plain = example_audit(4, verdict).model_dump(mode="json")
    plain["ledger"], plain["checks"] = plain["ledger"][:2], plain["checks"][:2]
    taken = []
    for path in leaves(plain):
        trial = json.loads(json.dumps(plain))
        at(trial, path[:-1])[path[-1]] = payload
        try:
            Audit.model_validate(trial)
        except ValidationError:
            continue
        taken.append(path)
    for path in taken:
        at(plain, path[:-1])[path[-1]] = payload
    for attack in plain["campaign"]["attacks"]:
        attack["spec"]["settings"][payload] = payload
    return Audit.model_validate(plain), len(taken)


# Records from their types


R = TypeVar("R", bound=BaseModel)
SHA = "0123456789abcdef" * 4
WHOLE = 1  # what every count is: of one sample there is one row


def _png() -> str:
    buffer = io.BytesIO()
    Image.new("L", (1, 1), 128).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


PATTERNS: dict[str, str] = {  # of constrained strings: one that is taken
    r"^[0-9a-f]{64}$": SHA,
    r"^EV\d\d$": "EV01",
    r"^[\w-]+(\.[\w-]+)*(/[\w-]+(\.[\w-]+)*)*$": "refutations/sample-1.npy",
    r"^[A-Za-z0-9+/]+={0,2}$": _png(),
}
SPECIAL: dict[str, Callable[[bool], dict[str, Any]]] = {  # by the record's name: fields that only go together
    "Eps": lambda full: {"text": "0.25", "value": 0.25},
    "Rate": lambda full: {"count": 1, "total": 1, "low": 0.025, "high": 1.0},
    "Execution": lambda full: {"reasons": ()} if full else {"pair_error": None, "certified": ()},
    "Adversary": lambda full: {"source": None, "target": None},
    "Plan": lambda full: {"roles": ("guided",)},
    "Picture": lambda full: {"factor": FACTORS[0]},
    "Pictures": lambda full: {"absent": None} if full else {"shown": ()},
    "Substitution": lambda full: {"places": (0,)},
    "Spectrum": lambda full: {"skipped": None} if full else {"values": ()},
    "Health": lambda full: {"untold": None} if full else {"training": None},
    "HealthView": lambda full: {"untold": None} if full else {"training": None},
    "Audit": lambda full: {"input_shape": (1, 1, 1)},
    "Comparison": lambda full: {"eps": ("0.25",)},  # certkit's own, read back by nothing
    "Proven": lambda full: {"eps": "0.25"},
}


def made(kind: type[R], text: str, *, full: bool = True) -> R:
    """A record of this kind with the text in every string that its type leaves free, and every part of it there.

    Where two parts exclude each other, such as a claim and the reasons against it, ``full`` has the one and without it the
    other. A type that nobody has said how to make is a TypeError: teach this module, then no field is forgotten.
    """
    fields = get_type_hints(kind, include_extras=True)
    special = SPECIAL.get(kind.__name__, lambda full: {})(full)
    given = {name: value for name, value in special.items() if name in kind.model_fields}
    for name, field in kind.model_fields.items():
        if name not in given:
            made_ = functools.reduce(lambda inner, note: Annotated[inner, note], field.metadata, fields[name])
            given[name] = _value(made_, text, full)
    return kind.model_validate(given)


def _value(hint: Any, text: str, full: bool, notes: tuple[Any, ...] = ()) -> Any:
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _value(inner[0], text, full, (*inner[1:], *notes))
    if origin is Literal:
        return inner[0]
    if origin in (Union, types.UnionType):
        return _value(str if str in inner else next(one for one in inner if one is not type(None)), text, full, notes)
    if origin is tuple:
        parts = inner[:1] if inner[-1] is Ellipsis else inner
        return tuple(_value(part, text, full) for part in parts)
    if origin is dict:
        return {_value(inner[0], text, full): text if inner[1] is Any else _value(inner[1], text, full)}
    if hint is str:
        return _text(notes, text)
    if hint is bool:
        return True
    if hint is int:
        return WHOLE
    if hint is float:
        return 0.5
    if isinstance(hint, type) and issubclass(hint, BaseModel):
        return made(hint, text, full=full)
    raise TypeError(f"hostile.made: nobody has said how to make {hint!r}")


def _text(notes: tuple[Any, ...], text: str) -> str:
    patterns = [note.pattern for note in _flat(notes) if getattr(note, "pattern", None) is not None]
    return PATTERNS[str(patterns[0])] if patterns else text


def _flat(notes: tuple[Any, ...]) -> Iterator[Any]:
    for note in notes:
        yield note
        yield from getattr(note, "metadata", ())
