"""Text on stdout and stderr, whatever became of their readers: what a command found must not depend on who listens."""

from __future__ import annotations

import errno
import os
import sys

import click

from certkit.errors import CertkitError


def put(text: str) -> None:
    """A text on stdout. A closed pipe is no error: the reader has had enough. Raises CertkitError for a full device."""
    try:
        click.echo(text)
    except OSError as error:
        discard()
        if error.errno != errno.EPIPE:
            raise CertkitError(f"stdout: could not be written ({error.strerror or error})") from None


def note(text: str) -> None:
    """A text on stderr. Where it cannot be written there is nobody to be told so, and the exit code still says it."""
    try:
        click.echo(text, err=True)
    except OSError:
        discard("stderr")


def unwritten(error: OSError) -> bool:
    """Whether it was click that failed to write a text of its own, such as --help: the error was raised in its echo."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_code is click.echo.__code__


def discard(name: str = "stdout") -> None:
    """Send the stream to nowhere from here on: the interpreter flushes it at exit, and would fail a second time."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, getattr(sys, name).fileno())
    except (OSError, ValueError):  # a stream of a test has no descriptor
        setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - lives as long as the process
    finally:
        os.close(nowhere)
