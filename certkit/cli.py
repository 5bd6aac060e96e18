"""The command group. Commands are named by string and imported when they are asked for: ``--help`` loads no torch."""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
from collections import UserDict
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from certkit import __version__
from certkit.errors import CertkitError, one_line

COMMANDS = {
    "attack": "certkit.commands.attack:attack",
    "audit": "certkit.commands.audit:audit",
    "certify": "certkit.commands.certify:certify",
    "demo": "certkit.commands.demo:demo",
    "doctor": "certkit.commands.doctor:doctor",
    "presets": "certkit.commands.presets:presets",
    "report": "certkit.commands.report:report",
    "train": "certkit.commands.train:train",
}


class Lazy(UserDict[str, click.Command]):
    """Commands by name, each imported the first time it is asked for."""

    def __getitem__(self, name: str) -> click.Command:
        found: Any = self.data[name]
        if isinstance(found, str):
            module, attribute = found.split(":")
            found = self.data[name] = getattr(importlib.import_module(module), attribute)
        command: click.Command = found
        return command


class Main(click.Group):
    """Turns every error of a user into one line on stderr and its exit code, and every fault of ours into 70."""

    def main(self, args: Sequence[str] | None = None, **extra: Any) -> NoReturn:  # type: ignore[override]
        """Run and exit; with ``--json`` an error is a JSON object on stdout as well."""
        words = list(sys.argv[1:] if args is None else args)
        extra["standalone_mode"] = False
        try:
            result = super().main(words, **extra)
            code = result if isinstance(result, int) else 0
        except click.exceptions.Exit as stop:
            code = stop.exit_code
        except click.ClickException as error:
            error.show()
            code = error.exit_code
            if "--json" in words:
                click.echo(json.dumps({"error": error.format_message(), "exit_code": code}))
        except (click.Abort, KeyboardInterrupt):
            code = _fail("interrupted; what was finished is kept", 130, words)
        except CertkitError as error:
            code = _fail(str(error), error.exit_code, words)
        except BrokenPipeError:
            code = 0
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - the reader is gone; the interpreter flushes at exit
        except Exception as error:  # noqa: BLE001 - the one place where a fault of certkit's own becomes an exit code
            if os.environ.get("CERTKIT_TRACEBACK"):
                traceback.print_exc()
            fault = f"a fault of certkit's own: {type(error).__name__}: {one_line(error)}"
            code = _fail(f"{fault}; CERTKIT_TRACEBACK=1 shows where, and a report of it is welcome", 70, words)
        sys.exit(code)


def _fail(message: str, code: int, words: Sequence[str]) -> int:
    click.echo(f"certkit: {one_line(message, 2000)}", err=True)
    if "--json" in words and code not in (3, 4):  # those two follow a result that was already printed
        click.echo(json.dumps({"error": message, "exit_code": code}))
    return code


@click.group(
    cls=Main,
    commands=Lazy(COMMANDS),  # type: ignore[arg-type]
    context_settings={"auto_envvar_prefix": "CERTKIT", "help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 ok, 1 gate failed, 2 usage or refused input, 3 evaluation invalid, 4 certificate refuted, "
    "5 incomplete, 70 internal error, 130 interrupted.",
)
@click.version_option(__version__, "--version", "-V", prog_name="certkit")
def main() -> None:
    """Certify, attack and audit neural networks.

    How much can the output move (certificate), how far can it be pushed (attack campaign), do the two agree (report)?
    Every option can also be given as CERTKIT_COMMAND_OPTION in the environment.
    """


if __name__ == "__main__":
    main()
