"""Every error a user can meet. Each message says what went wrong, where, and how to mend it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SecateursError(Exception):
    """The base of every error that this library raises on purpose."""


class TraceError(SecateursError):
    """The model could not be run, or what it did could not be recorded."""


class PlanError(SecateursError, ValueError):
    """A plan is not valid: an unknown group, a bad index, an unbalanced or impossible choice."""


class MendError(SecateursError):
    """An integer in the model fixes a size that a plan changes, and it cannot be rewritten."""


class MaskError(SecateursError, ValueError):
    """A mask does not fit a model, or nothing would be left under it."""


class LawError(SecateursError):
    """A cut changed more than the deleted units: the law of the cut does not hold."""


class DataError(SecateursError, ValueError):
    """The data or the loss cannot be used: an empty loader, a NaN, a wrong shape."""


class NotFiniteError(DataError):
    """A loss, a weight or a score became NaN or infinite."""


class UnscoredError(SecateursError):
    """A criterion cannot score a group, or any group of the network."""


class DerivativeError(SecateursError):
    """A second derivative was asked for that cannot be had from this network, loss or data."""


class BudgetError(SecateursError, ValueError):
    """A budget is malformed or cannot be reached."""


class FileError(SecateursError):
    """A file is missing, truncated, foreign or does not belong to the model at hand."""


class ExportError(SecateursError):
    """A network cannot be written in another format, or what was written gives other outputs."""


class ConfigError(SecateursError, ValueError):
    """A command line or configuration value is wrong."""


class WorkerError(SecateursError):
    """Worker processes died again and again over the same work."""


class MissingExtraError(SecateursError, ImportError):
    """Something was asked for that needs an optional package which is not installed."""


def nearest(name: str, known: Iterable[str]) -> str:
    """A clause that suggests the closest known name; empty if none is close.

    >>> nearest("cov1", ["conv1", "fc1"])
    "; did you mean 'conv1'?"
    """
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(known[:8])}{', …' if len(known) > 8 else ''}" if known else ""
