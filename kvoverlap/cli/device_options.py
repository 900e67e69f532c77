"""Options of the verbs that run on a device, and where they write timelines."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from kvoverlap.cli.options import Json, OutputFile, Seed
from kvoverlap.cli.output import note
from sim.errors import BadInput
from sim.machine.profile import HardwareProfile

if TYPE_CHECKING:
    from sim.results.recording import Recording

Device = Annotated[
    str, Parameter(help="auto, cpu or cuda. auto is cuda if this machine has a GPU, else cpu.")
]
PlanDevice = Annotated[
    str,
    Parameter(
        help="auto, cpu or cuda. auto is the device that the profile was measured on, or this "
        "machine's if the profile was not measured."
    ),
]
Link = Annotated[
    str | None,
    Parameter(
        metavar="RATE",
        help="Rate of the cpu device's emulated link, such as 0.4GB/s. By default the profile's, "
        "or one at which loading and recomputing take about the same time.",
    ),
]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class DeviceOptions:
    """The device to measure, its emulated link, and the random tensors."""

    device: Device = "auto"
    link: Link = None
    seed: Seed = 0


def check_distinct(*paths: Path | None) -> None:
    """Refuse outputs that would overwrite each other."""
    given = [path.resolve() for path in paths if path is not None]
    for path in given:
        if given.count(path) > 1 and not path.is_char_device():
            raise BadInput(f"two outputs go to {path}; give each a name of its own.")


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class TimelineOutput:
    """Where timelines go."""

    output: Annotated[
        OutputFile | None,
        Parameter(
            name=["--output", "-o"], help="Write the timelines here, for `kvoverlap compare`."
        ),
    ] = None
    trace: Annotated[
        OutputFile | None,
        Parameter(help="Write a Chrome trace here; open it at ui.perfetto.dev."),
    ] = None
    json: Json = False

    def __post_init__(self) -> None:
        check_distinct(self.output, self.trace)

    def write(self, recording: "Recording") -> None:
        """Write the chosen files."""
        if self.output is not None:
            recording.save(self.output)
        if self.trace is not None:
            from sim.results.trace import write_trace

            write_trace(recording.typical, self.trace, recording.source)


PRINT_ONLY = TimelineOutput()
THIS_DEVICE = DeviceOptions()


def device_for(hardware: HardwareProfile, device: str) -> str:
    """Kind of the device to run on; `auto` is the one that the profile was measured on, if any."""
    from hw import resolve_device

    made_for = hardware.device_kind
    kind = resolve_device(made_for if device == "auto" and made_for != "none" else device)
    if kind != made_for:
        note(f"the plan was made for {hardware.name}; this run measures the {kind} device")
    return kind
