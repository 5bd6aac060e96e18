"""The JSON Schema of audit.json, for whoever reads the record without certkit.

python -m certkit.reports.schema > docs/audit.schema.json
"""

from __future__ import annotations

import json

from certkit.records import Audit

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def schema() -> str:
    """The schema as text: what a file must be to be read as an audit of this format, byte for byte the same on every call.

    What a schema cannot say stays with certkit: that eps is its text rounded up, that a count is at most its total.
    """
    described = {"$schema": DIALECT, **Audit.model_json_schema(mode="validation")}
    return json.dumps(described, sort_keys=True, indent=1, ensure_ascii=True) + "\n"


if __name__ == "__main__":
    print(schema(), end="")
