"""The command group: what is common to every command, and how errors reach the user."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from ..errors import SecateursError
from .compare import compare_criteria
from .export import export_model
from .init import init_config
from .inspect import inspect_model
from .objects import told
from .prune import prune_model
from .report import report_saved
from .sparsify import sparsify_model
from .verify import verify_saved

BROKEN, WRONG, UNEXPECTED, INTERRUPTED = 1, 2, 3, 130

HELP = """
Cut what a trained neural network does not need, and prove that the cut is clean.

See what can be cut, compare criteria, prune to a budget, look at what came of it, check what was
written, export it:

```
secateurs inspect torchvision:resnet18
secateurs init run.toml
secateurs compare run.toml --out runs/compared
secateurs prune run.toml
secateurs sparsify run.toml --compression 10
secateurs report runs/a
secateurs verify runs/a
secateurs export runs/a --onnx model.onnx
```
"""
# Click's own, which newer versions of Typer carry inside and older ones import
CommandError: type[Exception] = typer.BadParameter.__mro__[2]
EPILOG = (
    "Exit codes: 0 done; 1 the law of the cut is broken, or the budget was not met; "
    "2 something given is wrong; 3 an unexpected error; 130 interrupted."
)


class Commands(TyperGroup):
    """Commands whose errors are one line on stderr; the traceback is there for the asking."""

    def main(self, args: Sequence[str] | None = None, *others: Any, **settings: Any) -> NoReturn:
        given = list(sys.argv[1:] if args is None else args)
        debug = "--debug" in given or os.environ.get("SECATEURS_DEBUG", "0") not in ("", "0")
        # taken out here, so that it may stand anywhere: one adds it to the end of a failed command
        given = [arg for arg in given if arg != "--debug"] or ["--help"]
        settings["standalone_mode"] = False
        settings["obj"] = given  # the command as it was given, for the record of a run
        try:
            code = super().main(given, *others, **settings)
        except typer.Abort:
            code = INTERRUPTED
        except SecateursError as error:
            code = _report(error, str(error), WRONG, debug)
        except CommandError as error:
            code = _report(error, _usage(error), WRONG, debug)
        except Exception as error:  # noqa: BLE001 - the last resort, and it is shown
            again = "" if debug else "; run again with --debug to see where"
            message = f"unexpected {told(error)}{again}"
            code = _report(error, message, UNEXPECTED, debug)
        if code == INTERRUPTED:
            typer.echo("interrupted", err=True)
        sys.exit(code if isinstance(code, int) else 0)


def _report(error: Exception, message: str, code: int, debug: bool) -> int:
    if debug:
        typer.echo("".join(traceback.format_exception(error)), err=True)
    typer.echo(f"error: {' '.join(message.split())}", err=True)
    return code


def _usage(error: Any) -> str:
    """What is wrong with the command line, and where its help is."""
    context = getattr(error, "ctx", None)
    where = context.command_path if context is not None else "secateurs"
    message = str(error.format_message()).rstrip(".")
    return f"{message}{' ' if message.endswith('?') else '; '}see {where} --help"


def _version(asked: bool) -> None:
    if asked:
        from .. import __version__

        typer.echo(f"secateurs {__version__}")
        raise typer.Exit


app = typer.Typer(
    cls=Commands, help=HELP, epilog=EPILOG, add_completion=False, rich_markup_mode="markdown"
)


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[
        bool,
        typer.Option(
            "--debug", help="Show the traceback of an error; so does SECATEURS_DEBUG=1. Anywhere."
        ),
    ] = False,
) -> None:
    """What every command knows; the help text is HELP."""


app.command("inspect")(inspect_model)
app.command("init")(init_config)
app.command("prune")(prune_model)
app.command("sparsify")(sparsify_model)
app.command("compare")(compare_criteria)
app.command("report")(report_saved)
app.command("verify")(verify_saved)
app.command("export")(export_model)
