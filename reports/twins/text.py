"""Bytes that are the same on every call, and text that no reader can mistake for markup."""

from __future__ import annotations

import json
import re
from typing import Any

from certkit.errors import one_line


def as_json(value: Any) -> bytes:
    """Canonical JSON: sorted keys, ASCII, no NaN."""
    return (json.dumps(value, sort_keys=True, allow_nan=False, indent=1, ensure_ascii=True) + "\n").encode()


_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>()#+!|~&$:@-])")


def markdown(text: str) -> str:
    """Text as Markdown shows it literally: every character that could begin markup, a link or a mention is escaped."""
    return _MARKDOWN.sub(lambda found: f"&#{ord(found[0])};", one_line(text, 500))
