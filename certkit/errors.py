"""Every error a user can cause, with the exit code it ends a command with.

CertkitError                    2   the command prints the one line and exits with the class's code
├── ConfigError                 2   run.toml, an option or a value          "run.toml: unknown key 'widht'; did you mean 'width'?"
├── CheckpointError             2   a file that is not the checkpoint it claims to be
├── DataError                   2   a dataset that is missing, damaged, or not what it is read as
├── Refusal                     2   a model outside what can be certified soundly
│   └── NoRule                  2   an operator that no rule covers         "blocks.0.mlp: no rule for aten.tan.default ..."
├── RecordError                 2   a certificate, campaign or audit file that is malformed
│   └── Tampered                2   a record whose parts contradict one another
│       └── RuleViolation       2   a ledger that states a bound its own rule does not give
├── GateFailed                  1   a threshold that was asked for is not met
├── EvaluationInvalid           3   the campaign's own checks say that its result means nothing
├── Refuted                     4   an adversarial example inside a certified radius
└── Incomplete                  5   parts of a campaign are missing; run it again to resume

Two more codes come from the command itself: 70 for a fault of certkit's own, 130 for an interruption.
Broken invariants of the code are not here: they are ``assert``s or plain exceptions.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class CertkitError(Exception):
    """An error that a user can cause and mend; its text is one line saying what was given, expected and what to do."""

    exit_code = 2


class ConfigError(CertkitError):
    """A key or value of a run's configuration or of the command line that cannot be meant."""


class CheckpointError(CertkitError):
    """A file that is not a checkpoint, or not one that can be read safely."""


class DataError(CertkitError):
    """A dataset that is missing, damaged, or not what it is read as."""


class Refusal(CertkitError):
    """A model outside what can be certified soundly."""


class NoRule(Refusal):
    """An operator that no rule covers."""


class RecordError(CertkitError):
    """A certificate, campaign or audit file that is malformed."""


class Tampered(RecordError):
    """A record whose parts contradict one another."""


class RuleViolation(Tampered):
    """A ledger that states a bound its own rule does not give."""


class GateFailed(CertkitError):
    """A threshold that was asked for is not met."""

    exit_code = 1


class EvaluationInvalid(CertkitError):
    """The campaign's own checks say that its result means nothing."""

    exit_code = 3


class Refuted(CertkitError):
    """An adversarial example lies inside a certified radius."""

    exit_code = 4


class Incomplete(CertkitError):
    """Parts of a campaign are missing; the same command resumes it."""

    exit_code = 5


def suggestion(given: str, known: Iterable[str]) -> str:
    """``"; did you mean 'width'?"`` when a known name is close to the given one, else the empty string."""
    close = difflib.get_close_matches(given, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def one_line(text: object, limit: int = 300) -> str:
    """The text on one line of at most ``limit`` characters, control and direction characters made visible.

    Every message that quotes a file or a user goes through here: what they contain must not reach a terminal raw.
    """
    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(text))
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"
