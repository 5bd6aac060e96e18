"""The table of twins, and the one place that writes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from certkit.errors import ConfigError, RecordError, one_line, suggestion
from certkit.files import load, write_atomic
from certkit.records import Audit

from .cyclonedx import cyclonedx
from .intoto import intoto
from .junit import junit
from .sarif import sarif
from .summary import model_card, summary
from .tables import as_csv, as_parquet


class Twin(NamedTuple):
    """A format: the file beside audit.json, and how the audit becomes its bytes."""

    file: str
    make: Callable[[Audit], bytes]


TWINS = {
    "csv": Twin("samples.csv", as_csv),
    "parquet": Twin("samples.parquet", as_parquet),
    "sarif": Twin("audit.sarif", sarif),
    "junit": Twin("junit.xml", junit),
    "markdown": Twin("summary.md", summary),
    "model-card": Twin("model-card.md", model_card),
    "cyclonedx": Twin("bom.cdx.json", cyclonedx),
    "in-toto": Twin("attestation.intoto.json", intoto),
}


def write(directory: Path, formats: Sequence[str]) -> tuple[Path, ...]:
    """Write the twins of a folder's audit.json beside it and return where they are.

    Raises ConfigError for a format that nobody knows, RecordError when there is no whole, well-formed audit.json.
    """
    if unknown := [name for name in formats if name not in TWINS]:
        raise ConfigError(
            f"format {one_line(unknown[0], 40)!r} is not known; expected {', '.join(TWINS)}{suggestion(unknown[0], TWINS)}"
        )
    source = Path(directory) / "audit.json"
    if not source.is_file():
        raise RecordError(f"{one_line(directory)}: no audit.json here; expected a folder that certkit audit wrote")
    audit = load(Audit, source)
    made = {Path(directory) / TWINS[name].file: TWINS[name].make(audit) for name in dict.fromkeys(formats)}
    for path, data in made.items():  # only when all of them could be made
        write_atomic(path, data)
    return tuple(made)
