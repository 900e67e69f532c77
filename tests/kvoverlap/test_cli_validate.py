"""`kvoverlap validate` from profile to report, on a tiny model and a short profile."""

import json

import pytest
from tiny import CONFIG, shorten_profiles

import hw
import hw.calibrate.profiler
from kvoverlap.cli.main import main
from planner import Plan
from sim import Recording, compare, find_hardware, simulate

POLICIES = {"lp", "kvpr", "load-all", "recompute-all"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("validate")


@pytest.fixture
def validate(folder, capsys, monkeypatch):
    """Run a small grid; returns (exit status, stdout, stderr)."""
    (folder / "tiny.json").write_text(json.dumps(CONFIG))
    shorten_profiles(monkeypatch)
    grid = f"--model {folder / 'tiny.json'} --batches 2,3 --repeats 2 --link 0.2GB/s"

    def call(*more, prompts="24,40"):
        arguments = ["validate", "--device", "cpu", "--prompts", prompts, *grid.split()]
        status = main([*arguments, *map(str, more)])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


def test_json_answer_folder_and_progress(validate, folder):
    out = folder / "run"
    status, stdout, stderr = validate("--out", out, "--json")
    answer = json.loads(stdout)
    assert status == 0
    assert "profile: pass 1 of 1" in stderr
    assert "validate: tiny b3-s40, round 1" in stderr
    cases = answer["cases"]
    assert len(cases) == 2 * 2 * (len(POLICIES) + 2)
    assert {case["policy"] for case in cases} >= POLICIES
    errors = sorted(abs(case["makespan_error_frac"]) for case in cases)
    assert answer["max_abs_error_frac"] == errors[-1]
    assert errors[0] <= answer["median_abs_error_frac"] <= errors[-1]
    assert answer["lp_measured_regret_frac"] >= 0
    assert answer["device"].startswith("cpu")
    assert set(answer["checks"]) == {case["name"] for case in cases}
    assert all(check["tokens_equal"] is True for check in answer["checks"].values())
    assert answer["runs"] >= 2 * len(cases)
    profile = find_hardware(str(out / "profile.json"))
    for case in cases:
        plan = Plan.load(out / "cases" / case["name"] / "plan.json")
        measured = Recording.load(out / "cases" / case["name"] / "measured.json.gz")
        now = profile
        drift = answer["machine_drifts"]["-".join(case["name"].split("-")[:2])]
        for part in ("flops", "hbm"):
            now = now.with_faster(part, 1 / drift[part])
        assert plan.hardware == measured.hardware == now
        assert len(measured.runs) == 2
        timeline = simulate(plan.simulated_graph(), now)
        again = compare(Recording("predicted", now, (timeline,)), measured)
        assert again.makespan_error_frac == pytest.approx(case["makespan_error_frac"])


def test_a_second_run_replaces_the_first_and_the_gate_decides_the_status(validate, folder):
    out = folder / "again"
    assert validate("--out", out, "--gate", 1e9)[0] == 0
    status, stdout, _ = validate("--out", out, "--gate", 0, prompts="24")
    assert status == 1
    assert "FAILED" in stdout
    for words in ("median |error|", "fastest measured", "numbers: tokens, logits", "disturbed"):
        assert words in stdout
    assert {path.name.split("-")[1] for path in (out / "cases").iterdir()} == {"s24"}


class SlowedProbe:
    """Reference products of a machine that is 10 % slower from the first run on."""

    def __init__(self, *_: object) -> None:
        self.ratio = 1.0

    @staticmethod
    def device_bytes(*_: object) -> int:
        return 0

    def sample(self) -> dict[str, float]:
        self.ratio = 1.1
        return {"flops": self.ratio, "hbm": self.ratio}

    def drift(self, _beats: int) -> dict[str, float]:
        return {"flops": self.ratio, "hbm": self.ratio}


def test_a_shape_is_planned_anew_for_a_machine_that_changed_its_speed(validate, monkeypatch):
    monkeypatch.setattr(hw, "SpeedProbe", SlowedProbe)
    status, stdout, stderr = validate("--json", prompts="24")
    answer = json.loads(stdout)
    assert status == 0
    assert stderr.count("planning anew") == 1
    slower = {"flops": 1.1, "hbm": 1.1}
    assert answer["machine_drifts"] == {"b2-s24": slower, "b3-s24": slower}
    assert answer["machine_drifts_beside_runs"] == answer["machine_drifts"]
    assert answer["disturbed_runs"] == 0


def test_a_model_with_windows_is_prefilled_for_each_prompt(validate, folder):
    shape = {
        "model_type": "mistral",
        "intermediate_size": 128,
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-5,
        "sliding_window": 16,
    }
    (folder / "tiny.json").write_text(json.dumps({**CONFIG, **shape}))
    status, stdout, _ = validate("--json")
    checks = json.loads(stdout)["checks"]
    assert status == 0
    assert all(any(f"-s{prompt}-" in name for name in checks) for prompt in (24, 40))
    assert all(check["tokens_equal"] is True for check in checks.values())


def test_a_quantised_cache_is_validated_and_its_error_reported(validate):
    status, stdout, _ = validate("--kv-bits", 8, "--json", prompts="24")
    checks = json.loads(stdout)["checks"]
    assert status == 0
    assert {name.split("-")[2] for name in checks} == {"kv8"}
    assert all(check["tokens_equal"] is True for check in checks.values())
    assert checks["b2-s24-kv8-load-all"]["kv_quantisation_error"] > 1e-4
    assert checks["b2-s24-kv8-recompute-all"]["kv_quantisation_error"] < 1e-4
    assert "quantised cache: K and V off by" in validate("--kv-bits", 4, prompts="24")[1]
