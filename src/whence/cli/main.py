"""The ``whence`` command: its subcommands, and errors as one line."""

from __future__ import annotations

import sys
import warnings
from typing import Any

import typer

from whence import __version__
from whence.cli.attack import attack_command
from whence.cli.audit import audit_command
from whence.cli.clean import clean_command
from whence.cli.cleanse import cleanse_command
from whence.cli.compare import compare_command
from whence.cli.console import plain, terminal
from whence.cli.curves import curves_command
from whence.cli.decided import retrain_command
from whence.cli.doctor import doctor_command
from whence.cli.evaluate import evaluate_command
from whence.cli.explain import explain_command
from whence.cli.methods import methods_command
from whence.cli.mismatch import mismatch_command
from whence.cli.plan import plan_command
from whence.cli.prune import prune_command
from whence.cli.relabel import relabel_command
from whence.cli.serve import serve_command
from whence.cli.sources import sources_command
from whence.cli.words import words_command
from whence.errors import ConfigError, WhenceError

__all__ = ["app", "main"]

_LONGEST = 2_000
_STOPPED = "[bold]stopped:[/] nothing was written."

app = typer.Typer(
    name="whence",
    help="Which training examples caused a prediction, which are mislabelled, what would change without them.",
    epilog="Results go to standard output (--json: one object on one line), progress and errors to standard error. "
    "Exit codes: 0 fine, 1 an error, told in one line, 2 wrong usage, 130 stopped by Ctrl-C. "
    "NO_COLOR=1 turns colours off.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("audit")(audit_command)
app.command("explain")(explain_command)
app.command("serve")(serve_command)
app.command("retrain")(retrain_command)
app.command("clean")(clean_command)
app.command("relabel")(relabel_command)
app.command("prune")(prune_command)
app.command("cleanse")(cleanse_command)
app.command("sources")(sources_command)
app.command("curves")(curves_command)
app.command("compare")(compare_command)
app.command("evaluate")(evaluate_command)
app.command("plan")(plan_command)
app.command("mismatch")(mismatch_command)
app.command("attack")(attack_command)
app.command("words")(words_command)
app.command("methods")(methods_command)
app.command("doctor")(doctor_command)


def _version(value: bool) -> None:
    if value:
        print(f"whence {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    """Trace predictions to training examples and find mislabelled rows."""


def main() -> None:
    """Run the command line; a user's mistake is one line on standard error, exit code 2 for usage and 1 otherwise."""
    errors = terminal(stderr=True)

    def tell(message: Warning | str, *where: Any, **more: Any) -> None:
        errors.print("[bold]note:[/] ", end="")
        errors.print(plain(str(message), _LONGEST), markup=False, soft_wrap=True)

    try:
        with warnings.catch_warnings():
            warnings.showwarning = tell  # a user of the command line needs no line of our source
            app(prog_name="whence")
    except WhenceError as error:
        errors.print("[bold red]error:[/] ", end="")
        errors.print(plain(str(error), _LONGEST), markup=False, soft_wrap=True)
        sys.exit(2 if isinstance(error, ConfigError) else 1)
    except KeyboardInterrupt:
        errors.print(_STOPPED)
        sys.exit(130)
    except SystemExit as stop:
        if stop.code == 130:  # Typer turns Ctrl-C into this exit and says nothing
            errors.print(_STOPPED)
        raise
    except MemoryError:
        errors.print("[bold red]error:[/] memory ran out. Audit fewer rows or close other programs.")
        sys.exit(1)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
