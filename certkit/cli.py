"""The command group. Commands are named by string and imported when they are asked for: ``--help`` loads no torch."""

from __future__ import annotations

import errno
import importlib
import json
import os
import sys
import traceback
from collections import UserDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

import click

from certkit import __version__
from certkit.commands import output
from certkit.errors import CertkitError, one_line

COMMANDS = {
    "attack": "certkit.commands.attack:attack",
    "audit": "certkit.commands.audit:audit",
    "certify": "certkit.commands.certify:certify",
    "compare": "certkit.commands.compare:compare",
    "crosscheck": "certkit.commands.crosscheck:crosscheck",
    "demo": "certkit.commands.demo:demo",
    "doctor": "certkit.commands.doctor:doctor",
    "gate": "certkit.commands.gate:gate",
    "language": "certkit.commands.language:language",
    "open": "certkit.commands.open:open_",
    "precision": "certkit.commands.precision:precision",
    "presets": "certkit.commands.presets:presets",
    "replay": "certkit.commands.replay:replay",
    "report": "certkit.commands.report:report",
    "stability": "certkit.commands.language:stability",
    "train": "certkit.commands.train:train",
    "verify": "certkit.commands.verify:verify",
}
TRUE = ("1", "true", "t", "yes", "y", "on")  # what click reads as a flag that is given


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
        """Run and exit; with ``--json``, or its variable in the environment, an error is a JSON object on stdout as well."""
        words = list(sys.argv[1:] if args is None else args)
        extra["standalone_mode"] = False
        try:
            result = super().main(words, **extra)
            code = result if isinstance(result, int) else 0
        except click.exceptions.Exit as stop:
            code = stop.exit_code
        except click.ClickException as error:
            code = error.exit_code
            try:
                error.show()
            except OSError:
                output.discard("stderr")
            _as_json(error.format_message(), code, words)
        except (click.Abort, KeyboardInterrupt):
            code = _fail("interrupted; what was finished is kept", 130, words)
        except CertkitError as error:
            code = _fail(str(error), error.exit_code, words)
        except _Unwritten as stop:
            output.discard()
            code = 0 if stop.reason.errno == errno.EPIPE else _fail(str(stop), 2, words)
        except OSError as error:
            _traceback()
            code = _fail(_of_the_system(error), 2, words) if error.errno is not None else _fault(error, words)
        except Exception as error:  # noqa: BLE001 - the one place where a fault of certkit's own becomes an exit code
            _traceback()
            code = _fault(error, words)
        sys.exit(code)

    def make_context(self, *words: Any, **extra: Any) -> click.Context:
        """As click does; a stdout that cannot be written is told apart from every other error."""
        with _writing():
            return super().make_context(*words, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        """As click does; a stdout that cannot be written is told apart from every other error."""
        with _writing():
            return super().invoke(ctx)


class _Unwritten(Exception):
    """stdout cannot be written. click would turn a closed pipe into exit code 1 by itself."""

    def __init__(self, reason: OSError) -> None:
        super().__init__(f"stdout: could not be written ({reason.strerror or reason})")
        self.reason = reason


@contextmanager
def _writing() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if output.unwritten(error):
            raise _Unwritten(error) from None
        raise


def _of_the_system(error: OSError) -> str:
    """What the system refused, such as a name that is too long or a disk that is full."""
    reason = error.strerror or one_line(error)
    return reason if error.filename is None else f"{one_line(error.filename, 120)}: {reason}"


def _traceback() -> None:
    if os.environ.get("CERTKIT_TRACEBACK"):
        output.note(traceback.format_exc())


def _fault(error: Exception, words: Sequence[str]) -> int:
    fault = f"a fault of certkit's own: {type(error).__name__}: {one_line(error)}"
    return _fail(f"{fault}; CERTKIT_TRACEBACK=1 shows where, and a report of it is welcome", 70, words)


def _fail(message: str, code: int, words: Sequence[str]) -> int:
    output.note(f"certkit: {one_line(message, 2000)}")
    if code not in (3, 4):  # those two follow a result that was already printed
        _as_json(message, code, words)
    return code


def _as_json(message: str, code: int, words: Sequence[str]) -> None:
    """The error on stdout, if the command was asked to speak JSON, by its option or by the environment."""
    variable = f"CERTKIT_{words[0].upper()}_JSON" if words else ""
    if "--json" in words or os.environ.get(variable, "").strip().lower() in TRUE:
        with suppress(CertkitError):  # stdout is full: stderr and the exit code have said it
            output.put(json.dumps({"error": message, "exit_code": code}))


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
