"""The `kvoverlap` command: its verbs and its exit status.

0: success. 1: a gate failed. 2: an expected failure, one sentence on stderr. 3: a defect.
130: interrupted by Ctrl-C.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from kvoverlap.cli.output import fail, out
from kvoverlap.cli.verbs import ABOUT, EPILOGUE, VERBS, overview
from sim.errors import BadInput, KvOverlapError
from sim.files import VERSION

if TYPE_CHECKING:
    from cyclopts import App

UNWRITABLE = (errno.EPIPE, errno.ENOSPC, errno.EIO, errno.EDQUOT)
"""Errors of a standard output whose reader or disk space is gone."""

EXTRA_OF = {
    **dict.fromkeys(("torch", "numpy", "safetensors", "tokenizers", "xxhash"), "hw"),
    **dict.fromkeys(("aiconfigurator_core", "pyarrow", "yaml"), "silicon"),
}
"""The extra that installs a package which a verb imports."""


def shown_default(value: Any) -> str | None:
    """Default as help shows it; None hides a default that says nothing."""
    return None if value is None or value is False or value == () else str(value)


def command_line(arguments: Sequence[str]) -> App:
    """The parser of `arguments`, which loads the verb that they name."""
    from cyclopts import App, Parameter

    app = App(
        name="kvoverlap",
        help=ABOUT,
        version=VERSION,
        help_epilogue=EPILOGUE,
        help_format="plaintext",
        default_parameter=Parameter(negative="", show_default=shown_default),
        console=out.console() if {"--help", "-h"} & set(arguments) else None,
        suppress_keyboard_interrupt=False,
    )
    for verb, (place, line) in VERBS.items():
        # A line given here would replace the whole description of the verb in its own help.
        short = {} if verb in arguments else {"help": line}
        app.command(f"kvoverlap.cli.{place}", name=verb, **short)
    return app


def answer_at_once(arguments: Sequence[str]) -> bool:
    """Print the overview or the list of models, without loading a parser; False for other verbs."""
    if list(arguments) in ([], ["--help"], ["-h"]):
        out.line(overview(out.columns))
    elif list(arguments) == ["models"]:
        from kvoverlap.cli.model_list import list_models

        list_models()
    else:
        return False
    return True


def parse_and_run(arguments: Sequence[str]) -> Any:
    """What the verb returns.

    Raises:
        BadInput: there is no such verb or option, or a value is not of its type.
    """
    app = command_line(arguments)
    from cyclopts import CycloptsError

    try:
        return app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as error:
        raise BadInput(" ".join(str(error).split()) + " Try `kvoverlap --help`.") from None


def main(
    arguments: Sequence[str] | None = None, interrupted: Callable[[], bool] = lambda: False
) -> int:
    """Run the command line; returns the exit status.

    Args:
        interrupted: whether Ctrl-C was pressed; some libraries turn it into an error of their own.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    try:
        result = None if answer_at_once(given) else parse_and_run(given)
        sys.stdout.flush()
    except KvOverlapError as error:
        fail(str(error))
        return 2
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRA_OF:
            raise
        fail(
            f"{package.replace('_', '-')} is not installed; this verb needs it: pip install "
            f"'kvoverlap[{EXTRA_OF[package]}]'."
        )
        return 2
    except KeyboardInterrupt:
        fail("interrupted.")
        return 130
    except Exception as error:
        if interrupted():
            fail("interrupted.")
            return 130
        if os.environ.get("KVOVERLAP_TRACEBACK"):
            raise
        if isinstance(error, OSError) and error.errno in UNWRITABLE:
            return _discard_output(error)
        if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
            fail(f"{error.filename} is too long for the name of a file.")
            return 2
        fail(
            f"this is a defect in kvoverlap: {type(error).__name__}: {error}. Set "
            "KVOVERLAP_TRACEBACK=1 to see where, and report it."
        )
        return 3
    return result if isinstance(result, int) else 0


def _discard_output(error: OSError) -> int:
    """End quietly if the reader of stdout has gone, with a sentence if its disk is full."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if error.errno != errno.EPIPE:
        fail(f"cannot write standard output: {error.strerror}; write it to another place.")
    return 2


if __name__ == "__main__":
    sys.exit(main())
