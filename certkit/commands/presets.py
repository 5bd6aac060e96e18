"""certkit presets: what can be trained by name."""

from __future__ import annotations

import click

from certkit.commands import options


@click.command()
@options.as_json
def presets(json: bool) -> None:
    """List the presets of certkit train."""
    from certkit.config import presets as known

    found = known()
    width = max(len(name) for name in found)
    options.say(found, [f"{name:<{width}}  {text}" for name, text in sorted(found.items())], json=json)
