"""The `kvoverlap` command: its verbs and its exit status.

0: success. 1: a gate failed. 2: an expected failure, one sentence on stderr. 3: a defect.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence

from cyclopts import App, CycloptsError, Parameter

from kvoverlap.cli.accuracy import accuracy
from kvoverlap.cli.advise import advise_verb
from kvoverlap.cli.catalogue import hardware_app, models
from kvoverlap.cli.devices import profile, run
from kvoverlap.cli.doctor import doctor
from kvoverlap.cli.generate import generate
from kvoverlap.cli.options import shown_default
from kvoverlap.cli.output import err, fail, out
from kvoverlap.cli.peers import peers
from kvoverlap.cli.plan import plan
from kvoverlap.cli.record import record
from kvoverlap.cli.reproduce import reproduce
from kvoverlap.cli.restore import restore
from kvoverlap.cli.sweep import sweep
from kvoverlap.cli.timelines import compare_verb, simulate_verb
from kvoverlap.cli.validate import validate
from sim.errors import KvOverlapError
from sim.files import VERSION

GARBAGE_THRESHOLD = 200_000
"""A long job has a million small objects that live until the end. Garbage collection among them
took a seventh of the planning time."""

EXTRA_OF = {
    **dict.fromkeys(("torch", "numpy", "safetensors", "tokenizers", "xxhash"), "hw"),
    **dict.fromkeys(("aiconfigurator_core", "pyarrow", "yaml"), "silicon"),
}
"""The extra that installs a package which a verb imports."""

app = App(
    name="kvoverlap",
    help=(
        "Decide what to load and what to recompute when a KV cache does not fit the GPU; predict "
        "the timeline, run the identical plan, and compare the prediction with the measurement."
    ),
    version=VERSION,
    help_epilogue=(
        "Start with `kvoverlap validate`: the whole loop on this machine. Then plan -> simulate -> "
        "run -> compare; each reads the file that the previous one wrote."
    ),
    help_format="plaintext",
    default_parameter=Parameter(negative="", show_default=shown_default),
    console=out,
    error_console=err,
)
app.command(plan)
app.command(simulate_verb, name="simulate")
app.command(doctor)
app.command(profile)
app.command(run)
app.command(generate)
app.command(compare_verb, name="compare")
app.command(validate)
app.command(record)
app.command(peers)
app.command(accuracy)
app.command(advise_verb, name="advise")
app.command(restore)
app.command(sweep)
app.command(reproduce)
app.command(models)
app.command(hardware_app)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    gc.set_threshold(GARBAGE_THRESHOLD)
    try:
        result = app(
            arguments if arguments is None else list(arguments),
            exit_on_error=False,
            print_error=False,
            result_action="return_value",
        )
    except CycloptsError as error:
        fail(" ".join(str(error).split()) + " Try `kvoverlap --help`.")
        return 2
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
        return 2
    except Exception as error:
        if os.environ.get("KVOVERLAP_TRACEBACK"):
            raise
        fail(
            f"this is a defect in kvoverlap: {type(error).__name__}: {error}. Set "
            "KVOVERLAP_TRACEBACK=1 to see where, and report it."
        )
        return 3
    return result if isinstance(result, int) else 0


if __name__ == "__main__":
    sys.exit(main())
