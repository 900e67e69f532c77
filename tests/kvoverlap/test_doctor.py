"""The doctor always finishes its table, judges by stated thresholds, and sees wrong numbers."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import pytest
import torch

import hw.doctor.checkup
import measure.doctor_decodes
from hw.doctor import Check, CopyRates, Durations, Overlap, Steadiness, Sustained, guarded
from hw.doctor.checkup import examine
from hw.doctor.compute import steadiness_check, sustained_check
from hw.doctor.concurrency import overlap_check
from hw.doctor.copies import COPY_BYTES, copies_check, link_of
from hw.doctor.machine import (
    cgroup_cores,
    cgroup_memory_bytes,
    check_clocks,
    check_link,
    device_advice,
    missing_packages,
    numa_cores,
    parse_cpulist,
)
from hw.environment import gpu_numa_node, gpu_state, nvml_state, throttle_names
from hw.model.kernels import Kernels
from kvoverlap.cli.doctor import print_checks
from measure.doctor_decodes import Outcome, numbers_check

SHORT = Durations(0.05, 0.05, 0.0, 0.01, 0.003, 2**20, 2**20)
ON_ANY_DEVICE = (
    "software",
    "extras",
    "host",
    "device",
    "attention",
    "page-locking",
    "sustained matmul",
    "copies",
    "overlap",
    "steadiness",
    "disk",
    "backend",
)


@pytest.fixture(autouse=True)
def small_copies(monkeypatch):
    for module in ("copies", "concurrency"):
        monkeypatch.setattr(f"hw.doctor.{module}.COPY_BYTES", (2**12, 2**16, 2**20))


@pytest.fixture
def short(monkeypatch):
    """Short measurements, one element type and one policy."""
    monkeypatch.setattr("hw.doctor.QUICK", SHORT)
    monkeypatch.setattr(measure.doctor_decodes, "DTYPES", {"cpu": ("float32",)})
    for policies in ("POLICIES", "QUANTISED_POLICIES"):
        monkeypatch.setattr(measure.doctor_decodes, policies, ("fixed:64",))


@pytest.mark.usefixtures("short")
def test_the_json_holds_every_check_and_is_kept_in_a_file(call, tmp_path):
    out = tmp_path / "doctor.json"
    arguments = ("doctor", "--device", "cpu", "--quick", "--json", "--out", out)
    status, stdout, stderr = call(*arguments)
    report = json.loads(stdout)
    assert status == 0
    assert set(report) == {"device", "seconds", "checks"}
    assert report["device"] == "cpu"
    names = {check["name"] for check in report["checks"]}
    assert names == {*ON_ANY_DEVICE, "numbers, float32"}
    for check in report["checks"]:
        assert set(check) == {"name", "status", "measured", "advice"}
        assert check["status"] in ("passed", "warned")
        assert check["measured"]
        assert bool(check["advice"]) == (check["status"] == "warned")
    kept = json.loads(out.read_text())
    assert kept["kind"] == "doctor"
    assert kept["checks"] == report["checks"]
    assert "doctor: steadiness" in stderr


@pytest.mark.usefixtures("short")
def test_wrong_numbers_fail_and_the_exit_status_is_one(call, monkeypatch):
    project = Kernels.project_kv

    def wrong(self, layer, x, kv, position):
        project(self, layer, x, kv, position)
        kv.mul_(1.01)

    monkeypatch.setattr(Kernels, "project_kv", wrong)
    monkeypatch.setattr(hw.doctor.checkup, "_device_checks", lambda *args: args[-1])
    status, stdout, _ = call("doctor", "--device", "cpu", "--quick")
    assert status == 1
    assert "WrongNumbers" in stdout
    assert "This device computes wrong numbers" in stdout
    assert max(map(len, stdout.splitlines())) <= 100


def test_an_exception_in_one_check_does_not_lose_the_others(monkeypatch):
    def broken(*_):
        raise RuntimeError("no such disk")

    monkeypatch.setattr(hw.doctor.checkup, "check_disk", broken)
    found = {check.name: check for check in examine("cpu", SHORT)}
    assert set(found) == set(ON_ANY_DEVICE)
    assert found["disk"].status == "failed"
    assert found["disk"].measured.startswith("RuntimeError: no such disk (test_doctor.py:")
    assert all(check.status != "failed" for name, check in found.items() if name != "disk")


def test_a_device_that_does_not_open_fails_alone(monkeypatch):
    def broken(_):
        raise RuntimeError("CUDA error: no device")

    monkeypatch.setattr(hw.doctor.checkup, "open_backend", broken)
    found = examine("cuda", SHORT)
    assert [check.name for check in found] == ["software", "extras", "host", "backend"]
    assert found[-1].status == "failed"


def test_checks_behind_the_time_limit_are_skipped_with_a_warning():
    found = examine("cpu", SHORT, limit_s=-1.0)
    assert {check.measured for check in found[:-1]} == {"not checked"}
    assert {check.status for check in found[:-1]} == {"warned"}


def test_guarded_names_type_and_text():
    def broken():
        raise ValueError("first\nsecond")

    assert guarded("one", broken).measured.startswith("ValueError: first second (")
    assert guarded("one", lambda: Check("one", "passed", "1 s")).status == "passed"


# 21 samples: the 5th and 95th percentiles are the second and the last but one.


@pytest.mark.parametrize(
    ("seconds", "spread", "drift", "status"),
    [
        ([1.0] * 21, 0.0, 0.0, "passed"),
        ([0.5, 0.99, *[1.0] * 17, 1.02, 2.0], 0.03, 0.0, "passed"),
        ([0.98, 0.98, *[1.0] * 17, 1.02, 1.02], 0.04, 0.0, "warned"),
        ([*[1.0] * 7, *[1.0] * 7, *[1.02] * 7], 0.02, 0.02, "passed"),
        ([*[1.0] * 7, *[1.0] * 7, *[1.05] * 7], 0.05, 0.05, "warned"),
    ],
)
def test_spread_and_drift_by_hand(seconds, spread, drift, status):
    found = Steadiness.of(seconds)
    assert found.median_s == 1.0
    assert found.spread_frac == pytest.approx(spread)
    assert found.drift_frac == pytest.approx(drift)
    # 3 % exactly is subject to rounding
    found = Steadiness(1.0, round(found.spread_frac, 9), round(found.drift_frac, 9), 21)
    assert steadiness_check(found, 10**12).status == status
    assert "(1 TFLOP/s)" in steadiness_check(found, 10**12).measured


@pytest.mark.parametrize(("sustained", "status"), [(1e14, "passed"), (0.9e14, "warned")])
def test_sustained_work_may_be_five_percent_slower(sustained, status):
    clocks = {"sm_clock_mhz": 345}, {"sm_clock_mhz": 1755}
    found = sustained_check(Sustained(1e14, sustained, *clocks))
    assert found.status == status
    assert "SM clock 345 MHz idle, 1755 MHz under load" in found.measured
    assert "SM clock" not in sustained_check(Sustained(1e14, sustained, {}, {})).measured


@pytest.mark.parametrize(
    ("together", "hidden", "on_gpu", "on_cpu"),
    [
        (1.0, 1.0, "passed", "passed"),
        (1.4, 0.8, "passed", "passed"),
        (2.0, 0.5, "warned", "warned"),
        (3.0, 0.0, "failed", "warned"),
    ],
)
def test_overlap_between_the_longest_and_the_sum(together, hidden, on_gpu, on_cpu):
    found = Overlap({"h2d": 1.0, "d2h": 1.0, "compute": 1.0}, together)
    assert (found.longest_s, found.sum_s) == (1.0, 3.0)
    assert found.hidden_frac == pytest.approx(hidden)
    assert overlap_check(found, "cuda").status == on_gpu
    assert overlap_check(found, "cpu").status == on_cpu


def rates(best: float, pageable: float | None) -> CopyRates:
    alone = dict(zip(COPY_BYTES, (1e9, best / 2, best), strict=True))
    return CopyRates({"h2d": alone, "d2h": alone}, 1.6 * best, pageable)


def test_copies_are_held_to_their_link():
    # PCIe 5 x16: 16 * 3.938 GB/s = 63 GB/s, of which 70 % are 44.1 GB/s
    assert copies_check(rates(52e9, 8e9), (5, 16)).status == "passed"
    assert "carries 63 GB/s" in copies_check(rates(52e9, 8e9), (5, 16)).measured
    assert "other traffic" in copies_check(rates(40e9, 8e9), (5, 16)).advice
    assert copies_check(rates(40e9, 8e9), None).status == "passed"
    assert "pageable" in copies_check(rates(8e9, 8e9), None).advice
    assert "emulated" in copies_check(rates(8e9, None), None).measured
    assert link_of({"pcie_generation": 5, "pcie_width": 16}) == (5, 16)
    assert link_of({"pcie_width": 16}) is None


class NvmlError(Exception):
    pass


def refused(*_):
    raise NvmlError("Not Supported")


def fake_nvml(**changes):
    """An NVML that knows a few queries and refuses ECC and power."""
    clocks = {"sm": 1755, "memory": 2619}
    usual = {
        "NVMLError": NvmlError,
        "NVML_CLOCK_SM": "sm",
        "NVML_CLOCK_MEM": "memory",
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: None,
        "nvmlDeviceGetHandleByUUID": lambda uuid: uuid,
        "nvmlSystemGetDriverVersion": lambda: b"570.1",
        "nvmlDeviceGetClockInfo": lambda _, clock: clocks[clock],
        "nvmlDeviceGetCurrentClocksThrottleReasons": lambda _: 0x4 | 0x40,
        "nvmlDeviceGetEccMode": refused,
        "nvmlDeviceGetPowerUsage": refused,
        "nvmlDeviceGetCurrPcieLinkWidth": lambda _: 16,
    }
    return SimpleNamespace(**{**usual, **changes})


KNOWN = {
    "driver": "570.1",
    "sm_clock_mhz": 1755,
    "memory_clock_mhz": 2619,
    "throttle_reasons": ["power cap", "hardware thermal slowdown"],
    "pcie_width": 16,
}


def test_what_nvml_refuses_is_left_out():
    assert nvml_state(fake_nvml(), "gpu") == KNOWN
    present = fake_nvml(nvmlDeviceGetCurrentClocksEventReasons=lambda _: 0)
    assert nvml_state(present, "gpu")["throttle_reasons"] == []


def test_the_state_of_a_gpu_without_nvml_or_with_a_broken_one(monkeypatch):
    properties = SimpleNamespace(uuid="1234")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    device = torch.device("cuda", 0)
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert gpu_state(device) == {}
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml())
    assert gpu_state(device) == KNOWN
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml(nvmlInit=refused))
    assert gpu_state(device) == {"nvml": "Not Supported"}


def test_throttle_bits_have_names():
    assert throttle_names(0) == []
    assert throttle_names(0x1 | 0x8 | 0x80) == ["idle", "hardware slowdown", "power brake"]
    assert throttle_names(0x4 | 0x1000) == ["power cap", "0x1000"]


def test_clocks_and_link_under_load():
    slow = check_clocks(KNOWN)
    assert slow.status == "warned"
    assert "SM 1755 MHz of not reported" in slow.measured
    assert "hardware thermal slowdown" in slow.advice
    capped = check_clocks({**KNOWN, "throttle_reasons": ["power cap"]})
    assert (capped.status, capped.advice) == ("passed", "")
    assert "throttle reasons: not reported" in check_clocks({}).measured
    assert check_clocks({}).status == "warned"
    full = {"pcie_generation": 5, "pcie_generation_max": 5, "pcie_width": 16, "pcie_width_max": 16}
    assert check_link(full).status == "passed"
    assert "below its width" in check_link({**full, "pcie_width": 8}).advice
    assert check_link({}).status == "passed"


def test_advice_about_the_use_of_a_gpu():
    assert device_advice({"driver": "570", "compute_processes": 1}, {}) == []
    assert "nvidia-ml-py" in device_advice({}, {})[0]
    assert "NVML does not work" in device_advice({"nvml": "Unknown Error"}, {})[0]
    busy = device_advice({"driver": "570", "compute_processes": 2}, {"CUDA_LAUNCH_BLOCKING": "1"})
    assert [text.partition(" this")[0] for text in busy] == [
        "Other processes use",
        "Unset CUDA_LAUNCH_BLOCKING: kernels run differently with it.",
    ]


def test_missing_packages_by_extra():
    requirements = [
        "rich>=14",
        'numpy>=1.26; extra == "hw"',
        'no-such-package>=2; extra == "hw"',
        'pytest; extra == "dev"',
        "rich; extra == 'peers'",
    ]
    assert missing_packages(requirements) == {"hw": ["no-such-package"], "peers": []}


def test_limits_and_nodes_are_read_from_the_system(tmp_path, monkeypatch):
    assert parse_cpulist("0-3,8\n") == {0, 1, 2, 3, 8}
    assert cgroup_cores(tmp_path) is None
    assert cgroup_memory_bytes(tmp_path) is None
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    (tmp_path / "memory.max").write_text("1073741824\n")
    assert cgroup_cores(tmp_path) == 1.5
    assert cgroup_memory_bytes(tmp_path) == 2**30
    (tmp_path / "cpu.max").write_text("max 100000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert cgroup_cores(tmp_path) is None
    assert cgroup_memory_bytes(tmp_path) is None
    for node, cores in ((0, "0-1"), (1, "2-3")):
        (tmp_path / f"node{node}").mkdir()
        (tmp_path / f"node{node}" / "cpulist").write_text(cores)
    assert numa_cores(tmp_path) == {0: {0, 1}, 1: {2, 3}}
    (tmp_path / "0000:17:00.0").mkdir()
    (tmp_path / "0000:17:00.0" / "numa_node").write_text("1\n")
    monkeypatch.setattr("hw.environment.PCI_DEVICES", tmp_path)
    assert gpu_numa_node("00000000:17:00.0") == 1
    assert gpu_numa_node("00000000:18:00.0") is None


def test_numbers_name_the_cases_that_are_wrong():
    right = Outcome("a", 1e-4)
    assert "1.0e-04" in numbers_check("float16", [right, Outcome("b")]).measured
    wrong = numbers_check("float16", [right, *[Outcome("c", error="RuntimeError: x")] * 5])
    assert wrong.status == "failed"
    assert wrong.measured.startswith("5 of 6 wrong: c: RuntimeError: x; ")
    assert wrong.measured.endswith("and 2 more")
    assert "cannot run" in wrong.advice


def test_long_texts_wrap_within_100_columns(capsys):
    print_checks("cpu", 1.0, [Check("disk", "warned", "word " * 60, "advice " * 40)])
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 100
    assert printed.count("advice") == 40
    assert "0 passed, 1 warned, 0 failed in 1 s" in printed
