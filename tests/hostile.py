"""Audits whose every free string is an attempt to run something in the reader's browser or to deceive the eye."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from typing import Any

from pydantic import ValidationError

from certkit.records import Audit, Verdict
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
