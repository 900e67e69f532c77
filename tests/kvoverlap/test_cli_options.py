"""Shared options: one help text on every verb, defaults in help, values parsed with units."""

from __future__ import annotations

import inspect
import re
from collections import defaultdict

import pytest
from golden.freeze import call as command

from kvoverlap.cli.main import VERBS, command_line
from kvoverlap.cli.options import MachineOptions
from kvoverlap.cli.plan import DecodeJob
from sim.catalog import find_hardware
from sim.errors import KvOverlapError

SHARED = (
    "--model",
    "--dtype",
    "--hardware",
    "--set",
    "--gpu-memory",
    "--host-memory",
    "--batch",
    "--prompt",
    "--gen",
    "--n-batches",
)
PLANNERS = ("plan", "restore", "advise")


def help_of(verb: str) -> dict[str, str]:
    """Help text of each option of a verb."""
    texts: dict[str, str] = defaultdict(str)
    name = ""
    for line in command(f"{verb} --help")[1].splitlines():
        found = re.match(
            r"│ [* ] +(--[\w-]+)(?: -\w)?(?: --no-\w+)? *([A-Z=]+(?:\.\.\.)?)? +(.*)│", line
        )
        if found:
            name = found[1]
        text = found[3] if found else line.strip("│ ") if line.startswith("│   ") else ""
        texts[name] += f" {text.strip()}"
    return {name: text.strip() for name, text in texts.items() if name in SHARED}


def test_an_option_has_the_same_help_on_every_verb():
    plan, *others = (help_of(verb) for verb in PLANNERS)
    assert set(plan) == set(SHARED)
    for other in others:
        assert {"--model", "--hardware", "--prompt"} <= set(other)
        assert other == {name: plan[name] for name in other}
    assert plan["--gen"].endswith("[default: 1]")


def test_groups_parse_counts_sizes_and_rates():
    job = "plan --model m --hardware h100 --set link.bandwidth=64GB/s --gpu-memory 24GiB --batch 8"
    arguments = f"{job} --prompt 4K".split()
    _, bound, _ = command_line(arguments).parse_args(arguments, print_error=False)
    groups = bound.arguments
    assert groups["job"] == DecodeJob(batch=8, prompt=4096)
    machine = groups["machine"]
    settings = ("link.bandwidth=64GB/s",)
    assert machine == MachineOptions(hardware="h100", settings=settings, gpu_memory=24 * 2**30)
    assert machine.load().memory.job_device_bytes == 24 * 2**30
    assert machine.load().links.h2d.bytes_per_s == pytest.approx(64e9)
    assert find_hardware("h100").links.h2d.bytes_per_s != pytest.approx(64e9)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ("compute.flops=64GB/s", "--set compute.flops(=64GB/s) must be a rate of at least 1 FLOP"),
        ("link.bandwidth=600TFLOP/s", "--set link.bandwidth(=600TFLOP/s) must be a rate of"),
        ("link.bandwidth=1GB/s link.bandwidth=2GB/s", "link.bandwidth is given twice"),
        ("uplink.bandwidth=64GB/s", "h100 has no uplink to change"),
        ("disk.bandwidth=1GB/s", "host.reads."),
    ],
)
def test_a_setting_has_a_known_key_once_in_its_unit(settings, sentence):
    options = MachineOptions(hardware="h100", settings=tuple(settings.split()))
    with pytest.raises(KvOverlapError) as refused:
        options.load()
    assert sentence in str(refused.value)


def test_the_rate_of_a_shared_uplink_can_be_set():
    options = MachineOptions(hardware="kvpr-a100-4gpu", settings=("uplink.bandwidth=48GB/s",))
    assert {one.h2d_bytes_per_s for one in options.load().uplinks} == {48e9}


@pytest.mark.parametrize("verb", VERBS)
def test_no_verb_has_more_than_eight_parameters(verb):
    assert len(inspect.signature(command_line([verb])[verb].default_command).parameters) <= 8


@pytest.mark.parametrize("verb", VERBS)
def test_the_list_of_verbs_shows_the_first_line_of_each_description(verb):
    status, shown = command(f"{verb} --help")[:2]
    assert (status, VERBS[verb][1] in " ".join(shown.split())) == (0, True)
