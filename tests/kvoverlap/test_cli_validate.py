"""`kvoverlap validate` from profile to report, on a tiny model and a short profile."""

import io
import json
from math import inf

import pytest
from tiny import SMALL, shorten_grids

import hw
import measure.decode_grid
import measure.grid
import measure.interleave
import measure.judgement
import measure.reports
from measure.child import LineWriter, read_status, run
from measure.interleave import machine_at
from measure.validation import PROFILE_SHARE
from planner import DecodePlan
from sim import Recording, compare, find_hardware, simulate

JUDGES = (measure.interleave, measure.judgement, measure.reports)

POLICIES = {"lp", "kvpr", "load-all", "recompute-all"}
SHAPES = ("b2-s24", "b3-s24", "b2-s40", "b3-s40")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("validate")
    (made / "tiny.json").write_text(json.dumps(SMALL))
    return made


@pytest.fixture(scope="module", autouse=True)
def short_grids():
    """Short runs, which are all judged: those of a tiny model are disturbed on any machine."""
    with pytest.MonkeyPatch.context() as patch:
        shorten_grids(patch)
        for module in JUDGES:
            patch.setattr(module, "STEADY_FRAC", inf)
        patch.setattr(measure.judgement, "MAX_NOISE_FRAC", inf)
        yield


@pytest.fixture
def validate(folder, call):
    """Run a small grid; returns (exit status, stdout, stderr)."""

    def run_grid(*more, model="tiny", prompts="24", batches="2"):
        grid = f"--model {folder / model}.json --prompts {prompts} --batches {batches}"
        options = f"--device cpu --repeats 2 --minutes 60 --link 0.2GB/s {grid}"
        return call("validate", *options.split(), *more)

    return run_grid


@pytest.fixture
def two_policies(monkeypatch):
    monkeypatch.setattr(measure.decode_grid, "POLICIES", ("lp", "load-all", "recompute-all"))
    monkeypatch.setattr(measure.decode_grid, "FIXED_FRACS", ())


def test_a_run_has_a_report_a_folder_and_progress(validate, folder):
    out = folder / "run"
    more = ("--out", out, "--gate", 1e9, "--json")
    status, stdout, stderr = validate(*more, prompts="24,40", batches="2,3")
    answer = json.loads(stdout)
    assert (status, answer["passed"]) == (0, True)
    assert "validate: profile, pass 1 of 1; at most 35" in stderr
    assert "validate: tiny b3-s40, round 1; at most" in stderr
    cases = answer["cases"]
    assert len(cases) == len(SHAPES) * (len(POLICIES) + 2)
    assert {case["policy"] for case in cases} >= POLICIES
    errors = sorted(abs(case["makespan_error_frac"]) for case in cases)
    assert answer["max_abs_error_frac"] == errors[-1]
    assert errors[0] <= answer["median_abs_error_frac"] <= errors[-1]
    assert answer["lp_measured_regret_frac"] >= 0
    assert answer["device"].startswith("cpu")
    assert set(answer["checks"]) == {case["name"] for case in cases}
    assert all(check["tokens_equal"] is True for check in answer["checks"].values())
    assert answer["runs"] >= 2 * len(cases)
    assert set(answer["machine_drifts"]) == set(SHAPES)
    profile = find_hardware(str(out / "profile.json"))
    for case in cases:
        plan = DecodePlan.load(out / "cases" / case["name"] / "plan.json")
        measured = Recording.load(out / "cases" / case["name"] / "measured.json.gz")
        drift = answer["machine_drifts"]["-".join(case["name"].split("-")[:2])]
        now = machine_at(profile, {part: one for part, one in drift.items() if part != "copy"})
        assert plan.hardware == now
        assert len(measured.runs) == 2
        timeline = simulate(plan.simulated_graph(), now)
        again = compare(Recording("predicted", now, (timeline,)), measured)
        assert again.makespan_error_frac == pytest.approx(case["makespan_error_frac"])


@pytest.mark.usefixtures("two_policies")
def test_the_child_process_fills_the_folder_and_the_gate_decides_the_status(validate, folder):
    out = folder / "again"
    request = {
        "out": str(out),
        "device": "cpu",
        "model": str(folder / "tiny.json"),
        "prompts": [40],
        "batches": [2],
        "repeats": 2,
        "minutes": 60,
        "link": "0.2GB/s",
    }
    lines = io.StringIO()
    assert run(json.dumps(request), LineWriter(lines)) == 0
    child = read_status(lines.getvalue())
    assert child.result == str(out)
    assert child.texts[0].startswith("profile, pass 1 of 1; at most 35")
    assert any(text.startswith("tiny b2-s40, round 1; at most") for text in child.texts)
    assert PROFILE_SHARE < child.fraction < 1
    assert {path.name.split("-")[1] for path in (out / "cases").iterdir()} == {"s40"}
    status, stdout, _ = validate("--out", out, "--gate", 0)
    assert status == 1
    assert "FAILED" in stdout
    for text in (
        "corrected, ",
        "the lp plan was the fastest measured",
        "numbers: tokens, logits",
        "disturbed",
    ):
        assert text in stdout
    assert {path.name.split("-")[1] for path in (out / "cases").iterdir()} == {"s24"}


@pytest.mark.parametrize(
    ("request_text", "reason"),
    [
        ("{", "The request is not valid"),
        ("[]", "The request is not valid"),
        ('{"device": "cpu"}', "KeyError"),
        ('{"out": "runs/x", "colour": "red"}', "colour"),
        ('{"out": "runs/x", "scenario": "restores"}', "did you mean 'restore'"),
        ('{"out": "runs/x", "repeats": 0}', "must be at least 1"),
    ],
)
def test_the_child_process_refuses_a_wrong_request_in_one_line(request_text, reason):
    lines = io.StringIO()
    assert run(request_text, LineWriter(lines)) == 2
    (line,) = lines.getvalue().splitlines()
    assert reason in json.loads(line)["error"]


class SlowedProbe:
    """Reference matmuls of a machine that is half as fast from the first run on."""

    keeps_speed = False

    @staticmethod
    def device_bytes(*_: object) -> int:
        return 0

    def __init__(self, *_: object) -> None:
        self.ratio = 1.0

    def sample(self, **_: bool) -> dict[str, float]:
        self.ratio = 2.0
        return {"flops": self.ratio, "hbm": self.ratio}

    def drift(self, _samples: int) -> dict[str, float]:
        return {"flops": self.ratio, "hbm": self.ratio}


@pytest.mark.usefixtures("two_policies")
def test_each_run_is_judged_by_the_speed_around_it(validate, monkeypatch):
    monkeypatch.setattr(hw, "SpeedProbe", SlowedProbe)
    monkeypatch.setattr(measure.interleave, "UNEXPLAINED_FRAC", 0.0)
    status, stdout, stderr = validate("--json")
    answer = json.loads(stdout)
    assert status == 0
    assert answer["machine_drifts"] == {"b2-s24": {"flops": 1.0, "hbm": 1.0}}
    assert answer["machine_drifts_beside_runs"] == {"b2-s24": {"flops": 2.0, "hbm": 2.0}}
    assert (answer["disturbed_runs"], answer["unsteady"], answer["left_out"]) == (0, None, [])
    for case in answer["cases"]:
        assert case["judged"]
        assert case["corrected_error_frac"] > case["makespan_error_frac"]
    assert "note: b2-s24-lp: predicted" in stderr
    by_rounds = answer["lp_corrected_regrets"]
    assert set(by_rounds) == {"b2-s24"}
    one = by_rounds["b2-s24"]
    slower = one["frac"] > 2 * one["noise_frac"]
    assert answer["lp_corrected_regret_frac"] == (one["frac"] if slower else 0.0)
    assert answer["lp_corrected_fastest_in"] == f"{int(not slower)} of 1 shapes"


class UnsteadyProbe(SlowedProbe):
    """Reference kernels that take eight times as long around every other run."""

    def sample(self, before_run: bool = False) -> dict[str, float]:
        self.ratio = 9.0 - self.ratio if before_run else self.ratio
        return {"flops": self.ratio, "hbm": self.ratio}


@pytest.mark.usefixtures("two_policies")
def test_a_machine_too_unsteady_to_judge_is_said_first_and_passes_no_gate(validate, monkeypatch):
    monkeypatch.setattr(hw, "SpeedProbe", UnsteadyProbe)
    monkeypatch.setattr(measure.judgement, "MAX_NOISE_FRAC", 0.04)
    status, stdout, _ = validate("--gate", 1e9)
    lines = stdout.splitlines()
    assert status == 2
    assert lines[0].startswith("This machine is too unsteady to judge: the same matmul varied by")
    assert "gate 1e+09 %: not judged" in lines
    assert stdout.count("not judged") > len(("lp", "load-all", "recompute-all"))
    status, stdout, _ = validate("--json")
    answer = json.loads(stdout)
    assert (status, answer["passed"], answer["judged_cases"]) == (0, True, 0)
    assert answer["unsteady"].startswith("This machine is too unsteady to judge")


@pytest.mark.usefixtures("two_policies")
def test_shapes_that_the_time_does_not_allow_are_left_out(validate, monkeypatch):
    monkeypatch.setattr(measure.grid, "GRACE_S", -1e6)
    status, _, stderr = validate()
    assert status == 2
    said = " ".join(stderr.split())
    assert "No case was measured. tiny b2-s24 left out: 2 repeats of every case take about" in said
    assert "or raise --minutes" in said


@pytest.mark.usefixtures("two_policies")
def test_a_model_with_windows_is_prefilled_for_each_prompt(validate, folder):
    shape = {
        "model_type": "mistral",
        "intermediate_size": 128,
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-5,
        "sliding_window": 16,
    }
    common = {key: value for key, value in SMALL.items() if key != "ffn_dim"}
    (folder / "window.json").write_text(json.dumps({**common, **shape}))
    status, stdout, _ = validate("--json", model="window", prompts="24,40")
    checks = json.loads(stdout)["checks"]
    assert status == 0
    assert all(any(f"-s{prompt}-" in name for name in checks) for prompt in (24, 40))
    assert all(check["tokens_equal"] is True for check in checks.values())


@pytest.mark.usefixtures("two_policies")
def test_a_quantised_cache_is_validated_and_its_error_reported(validate):
    status, stdout, _ = validate("--kv-bits", 8, "--json")
    checks = json.loads(stdout)["checks"]
    assert status == 0
    assert {name.split("-")[2] for name in checks} == {"kv8"}
    assert all(check["tokens_equal"] is True for check in checks.values())
    assert checks["b2-s24-kv8-load-all"]["kv_quantisation_error"] > 1e-4
    assert checks["b2-s24-kv8-recompute-all"]["kv_quantisation_error"] < 1e-4
    assert "quantised cache: K and V off by" in validate("--kv-bits", 4)[1]
