"""`kvoverlap record`: a recording of this machine in one call."""

from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Annotated

from cyclopts import Parameter

from kvoverlap.cli.accuracy import print_accuracy
from kvoverlap.cli.device_options import THIS_DEVICE, DeviceOptions
from kvoverlap.cli.options import Decimal, Json, OutputFile, Repeats
from kvoverlap.cli.output import note, print_json, progress, say
from kvoverlap.cli.peers import print_other_systems
from measure.calibrate import DEFAULT_DTYPE
from measure.record import (
    REPEATS,
    Recorder,
    check_output,
    chosen_settings,
    pack_folder,
    recorded_other_systems,
)
from measure.settings import RecordingOptions, RecordSetting
from sim.catalog import find_model
from sim.errors import BadInput, UnknownName
from sim.progress import Timed
from sim.results.accuracy import CASE, CASES, assess

SCENARIOS = ("all", "decode", "restore")
INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells report it."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Selection:
    """The settings to measure."""

    scenario: Annotated[
        str,
        Parameter(
            help="all, decode, or restore: of a cached prefix from host memory and from a file."
        ),
    ] = "all"
    models: Annotated[
        str | None,
        Parameter(
            help="Comma-separated models to measure, by default all of the device's list; a model "
            "that is not on the list is measured with one decode job."
        ),
    ] = None
    peers: Annotated[
        bool,
        Parameter(
            negative="--no-peers",
            help="Also decode the same with transformers, with its offloaded and its resident "
            "cache.",
        ),
    ] = True

    def settings(self, kind: str) -> list[RecordSetting]:
        """The chosen settings for a device of this kind, in order.

        Raises:
            UnknownName: no such scenario.
            BadInput: no setting has this scenario and these models.
        """
        if self.scenario not in SCENARIOS:
            raise UnknownName("scenario", self.scenario, SCENARIOS)
        return chosen_settings(kind, self.scenario, self.models, self.peers)


def record(
    *,
    output: Annotated[Path, Parameter(name=["--out", "-o"])],
    selection: Selection = Selection(),
    machine: DeviceOptions = THIS_DEVICE,
    minutes: Decimal = 8.0,
    repeats: Repeats = REPEATS,
    pack: OutputFile | None = None,
    json: Json = False,
) -> int:
    """Record this machine: measure held-out plans, restores and other systems.

    The folder holds the profile and, for every case, its graph and measured
    timelines, which `kvoverlap accuracy` predicts again. The most valuable cases
    come first. Only models whose cases fit the time are profiled. Every case is
    written when it is finished. Settings that fail, do not fit the time or are
    interrupted are listed in `left_out`; the same command completes them.

    For example:
      kvoverlap record --out data/recordings/my-machine
      kvoverlap record --device cuda --out data/recordings/h100-pcie5 --minutes 8
      kvoverlap record --device cuda --models opt-30b,opt-6.7b --out h100 \\
          --pack h100.tar.gz
      kvoverlap record --scenario restore --out data/recordings/my-restores

    Parameters
    ----------
    output
        Folder of the recording; an incomplete recording is completed.
    minutes
        Time limit; the running setting ends with fewer repeats.
    pack
        Write the whole folder into this .tar.gz file at the end.
    """
    from hw import resolve_device

    if not 0 < minutes < float("inf"):
        raise BadInput(f"--minutes(={minutes}) must be above 0.")
    if pack is not None and pack.is_dir():
        raise BadInput(f"--pack(={pack}) is a folder; name a file, such as recording.tar.gz.")
    kind = resolve_device(machine.device)
    chosen = selection.settings(kind)
    specs = {one.model: find_model(one.model, DEFAULT_DTYPE[kind]) for one in chosen}
    n_done = check_output(output, machine.link)
    if n_done:
        note(f"{output} holds {n_done} finished cases; they and its profile are reused.")
    until_s = monotonic() + 60 * minutes
    with progress("record") as shown:
        timed = Timed(shown, until_s)
        how = RecordingOptions(output, kind, repeats, machine.seed, timed, until_s)
        recorder = Recorder(how, specs, machine.link)
        recorder.measure(chosen)
    if pack is not None:
        pack_folder(output, pack)
    report(output, recorder, json)
    return INTERRUPTED if recorder.interrupted else 0


def report(output: Path, recorder: Recorder, json: bool) -> None:
    """Print the prediction errors of the recorded cases, and the settings that are left out."""
    left_out = recorder.left_out
    if not any(output.glob(f"{CASES}/*/{CASE}")):
        if json:
            print_json({"cases": [], "left_out": left_out, "peers": []})
        else:
            say(f"no case was measured; {output} is not a recording yet")
        return
    found = assess(output)
    if json:
        print_json(
            {**found.to_dict(), "left_out": left_out, "peers": recorded_other_systems(output)}
        )
        return
    print_accuracy(found)
    for one in recorded_other_systems(output):
        say("")
        print_other_systems(one)
    for what in left_out:
        note(what)
    say(f"\nrecording in {output}; check it with: kvoverlap accuracy --recordings {output}")
