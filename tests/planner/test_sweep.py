"""Sweeps: rows that equal plans, checkpoints that survive a stop, and summaries."""

from __future__ import annotations

import json
import time
from unittest.mock import patch

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from builders import make_plan, policy_s
from golden.freeze import call as call_in
from studies import RESTORE, SMALL, TRAFFIC, toml

from planner.restore import behind_link
from planner.sweep import Checkpoints, Study, estimate, local, run_sweep, summarize, timing
from planner.sweep.batch import Batch, batch_rows
from planner.sweep.rows import decode_row
from planner.sweep.runner import Clock
from planner.sweep.table import provenance
from planner.sweep.timing import Samples, expect
from sim.catalog import DATA, find_hardware, find_model
from sim.errors import BadInput, Mismatch
from sim.files import VERSION
from sim.graph.jobs import RestoreRequest, Workload
from sim.machine.what_if import with_memory, with_rate


def swept(content, tmp_path, name="out.parquet", **options):
    study = Study.of(content)
    return run_sweep(study, tmp_path / name, local(1), 1, **options).table


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return swept(SMALL, tmp_path_factory.mktemp("small"))


def test_a_row_equals_the_plan(table):
    for row in table.to_pylist():
        hardware = with_rate(find_hardware("kvpr-a100"), "link.bandwidth", row["link.bandwidth"])
        job = Workload(row["batch"], row["prompt"], row["gen"])
        plan = make_plan(find_model("opt-125m"), hardware, job, row["policy"], engine="fast")
        assert row["error"] == ""
        assert row["makespan_s"] == pytest.approx(plan.makespan_s, rel=1e-3)
        assert row["tokens_per_s"] == pytest.approx(plan.tokens_per_s, rel=1e-3)
        assert row["in_range"] is True
        assert (row["hardware_source"], row["kvoverlap_version"]) == (plan.source, VERSION)
        part = max(plan.sensitivities, key=lambda one: one.saved_by_duals_frac)
        assert row["bottleneck"] == part.part
        expected = pytest.approx(part.saved_by_duals_frac, abs=0.01)
        assert row["bottleneck_saves_frac"] == expected
        if row["policy"] == "lp":
            assert row["lower_bound_s"] <= row["makespan_s"] * (1 + 1e-9)


def test_residency_is_solved_by_the_lp():
    job = {"prompt": 256, "batch": 8, "gen": 1, "n_batches": 1, "gpus": 1, "kv_bits": 16}
    setting = {"model": "opt-1.3b", "hardware": "kvpr-a100", "policy": "lp", "schedule": "row"}
    values = {**job, **setting, "gpu_memory": 2.9e9}
    row = decode_row(values)
    hardware = with_memory(find_hardware("kvpr-a100"), 2.9e9)
    plan = make_plan(find_model("opt-1.3b"), hardware, Workload(8, 256, 1), keep=True)
    assert row["solved_by"] == "lp"
    assert 0 < row["resident_frac"] < 1
    assert row["makespan_s"] == pytest.approx(plan.makespan_s)


def test_a_restore_row_equals_the_restore_plan(tmp_path):
    for row in swept(RESTORE, tmp_path).to_pylist():
        hardware = behind_link(find_hardware("a100-80g"), float(row["tier"][:1]) * 1e9)
        request = RestoreRequest(prompt_tokens=4096, cached_tokens=4095, tier="net")
        plan = make_plan(find_model("longalpaca-7b"), hardware, request, row["policy"])
        assert row["ttft_s"] == pytest.approx(plan.ttft_s)
        assert row["load_only_s"] == pytest.approx(plan.load_only_s)
        assert row["computed_tokens"] + row["projected_tokens"] + row["loaded_tokens"] == 4096


def test_a_traffic_row_equals_the_command(tmp_path):
    fixed = {**TRAFFIC["fixed"], "ttft_slo": 0.2, "gpu_hour": 2.5, "gb_month": 2}
    rows = swept({**TRAFFIC, "fixed": fixed}, tmp_path).to_pylist()
    assert [(row["policy"], row["host_cache"]) for row in rows] == [
        (policy, size) for policy in ("load-only", "two-ended") for size in (0, 8e9, 16e9)
    ]
    call_in("traffic --generate 60 --rate 2 --seed 3 -o trace.jsonl", tmp_path)
    service = "--model llama-3.1-8b --hardware h100-sxm+pcie5-x16 --gpu-memory 22GB"
    options = "--sizes 0,8GB,16GB --ttft-slo 0.2 --gpu-hour 2.5 --gb-month 2 --json"
    for policy in ("load-only", "two-ended"):
        command = f"traffic trace.jsonl {service} --policy {policy} {options}"
        status, out, err = call_in(command, tmp_path)
        assert status == 0, err
        mine = [row for row in rows if row["policy"] == policy]
        for row, run in zip(mine, json.loads(out)["runs"], strict=True):
            assert row["error"] == ""
            assert [row[f"ttft_{at}_s"] for at in run["ttft_s"]] == [*run["ttft_s"].values()]
            assert row["tpot_p90_s"] == run["tpot_s"]["p90"]
            assert row["hit_frac"] == sum(run["hit_rate"].values())
            assert row["hit_dram_frac"] == run["hit_rate"].get("dram", 0.0)
            assert row["goodput_frac"] == run["goodput"]["fraction"]
            assert row["price_per_million_tokens"] == run["price_per_million_tokens"]
            assert row["busy_h2d_frac"] == run["busy"].get("h2d", 0.0)
    assert rows[2]["hit_dram_frac"] > rows[1]["hit_dram_frac"] > rows[0]["hit_dram_frac"] == 0


def test_the_best_service_has_the_lowest_p90(tmp_path):
    study = Study.of(TRAFFIC)
    table = swept(TRAFFIC, tmp_path)
    found = summarize(study, table)
    p90 = table.column("ttft_p90_s").to_pylist()
    assert (found.best["ttft_p90_s"], found.worst["ttft_p90_s"]) == (min(p90), max(p90))


def test_points_that_serve_nothing_say_why(tmp_path):
    fixed = {**TRAFFIC["fixed"], "generate": 3, "system_tokens": "128K", "new_tokens": "8K"}
    small = {**TRAFFIC, "fixed": fixed, "grid": {"gpu_memory": ["22GB", "1GB"]}}
    del small["fixed"]["gpu_memory"]
    rows = swept(small, tmp_path).to_pylist()
    assert "all 3 requests are too long for the GPU memory" in rows[0]["error"]
    assert "leaves no block for K and V" in rows[1]["error"]


def test_a_failed_point_has_an_error_and_the_others_have_outputs(tmp_path):
    content = {**SMALL, "grid": {"prompt": [64, 4096], "model.n_kv_heads": [12, 5]}}
    content["fixed"] = {**SMALL["fixed"], "policy": "load-all"}
    del content["fixed"]["prompt"]
    rows = swept(content, tmp_path).to_pylist()
    errors = {(row["prompt"], row["model.n_kv_heads"]): row["error"] for row in rows}
    assert errors[64, 12] == ""
    assert errors[4096, 12].startswith("BadInput: prompt_tokens + gen_tokens (=409")
    assert "n_heads(=12) must be a multiple of n_kv_heads(=5)" in errors[64, 5]
    assert {row["makespan_s"] is None for row in rows if row["error"]} == {True}


def test_the_table_has_its_study_in_its_metadata(table):
    said = provenance(table.schema)
    assert said["study_sha256"] == Study.of(SMALL).sha256
    assert said["zip"] == {"batch": [2, 8], "gen": [1, 2]}
    assert said["points"] == table.num_rows == 8
    assert table.schema.field("link.bandwidth").metadata == {b"unit": b"bytes/s"}


def test_a_sweep_that_fails_before_its_first_part_leaves_nothing(tmp_path):
    def refuse(batches):
        raise BadInput("no scheduler answers there")
        yield from batches

    with pytest.raises(BadInput, match="no scheduler"):
        run_sweep(Study.of(SMALL), tmp_path / "out.parquet", refuse, 1)
    assert not list(tmp_path.iterdir())


def test_the_expected_time_counts_the_points_that_need_the_lp(tmp_path):
    fixed = {"model": "opt-125m", "hardware": "kvpr-a100", "batch": 2}
    grid = {"prompt": list(range(64, 128)), "policy": ["load-all", "lp"]}
    study = Study.of({"title": "mixed", "fixed": fixed, "grid": grid})
    timed = []

    def slow(_, values):
        timed.append(values["policy"])
        end_s = time.process_time() + (0.02 if values["policy"] == "lp" else 0.001)
        while time.process_time() < end_s:
            pass

    with patch("planner.sweep.timing.point_row", slow):
        found = estimate(study, Checkpoints(study, tmp_path / "out.parquet"), 1)
    assert found.missing * found.point_s == pytest.approx(64 * 0.021, rel=0.3)
    assert len(timed) <= 128 // 8 + 1


SAMPLES = Samples(
    point_s=0.1, first_s=1.0, subject_s=0.05, unseen=4, subjects=8, wall_s=2.0, share=1.0
)


@pytest.mark.parametrize(
    ("missing", "workers", "share", "left_s", "pace_s"),
    [
        (100, 1, 1.0, 4 * 0.05 + 10.0, 0.1),
        (100, 2, 1.0, 1.5 + 1.0 + 7 * 0.05 + 5.0, 0.05),
        (100, 2, 0.5, 2 * (1.5 + 1.0 + 7 * 0.05) + 10.0, 0.1),
        (0, 2, 1.0, 0.0, 0.05),
    ],
    ids=["one process", "two start cold", "half the cores are busy", "nothing is missing"],
)
def test_the_expected_time_adds_samples_starts_and_points(missing, workers, share, left_s, pace_s):
    found = expect(SAMPLES, 100, missing, workers, 1.5, share)
    assert found.left_s == pytest.approx(left_s)
    assert found.seconds == pytest.approx(2.0 + left_s)
    assert found.pace_s == pytest.approx(pace_s)


def test_the_share_of_a_core_is_known_where_threads_start_after_the_time_is_over(monkeypatch):
    monkeypatch.setattr(timing, "SHARE_S", 0.0)
    assert 0.0 < timing.core_share(2) <= 1.0


def test_the_time_left_does_not_count_the_start_of_the_workers():
    clock = Clock(expected_s=0.2, prior=10)
    assert clock.pace_s == 0.2
    clock.book(10, now_s=1008.0)
    assert clock.pace_s == pytest.approx(0.2)
    clock.book(30, now_s=1018.0)
    assert clock.pace_s == pytest.approx((10 * 0.2 + 12.0) / (10 + 40))


def test_finished_points_are_not_computed_again(table, tmp_path):
    study = Study.of(SMALL)
    parts = Checkpoints(study, tmp_path / "out.parquet")
    parts.begin(resume=False)
    points = list(study.points())
    for first, last in ((0, 2), (5, 5)):
        setting = (study.scenario, study.inputs, parts.columns, study.sha256)
        batch = Batch(*setting, first, points[first : last + 1])
        parts.save(first, last, batch_rows(batch))
    (parts.folder / ".part-000000003-000000004.parquet.tmp").write_bytes(b"half")
    with pytest.raises(BadInput, match="add --resume"):
        run_sweep(study, parts.output, local(1), 1)
    rest = run_sweep(study, parts.output, local(1), 1, resume=True)
    assert rest.answered == 4
    assert rest.table.equals(table)
    assert pq.read_table(parts.output).equals(table)
    assert not parts.folder.exists()
    again = run_sweep(study, parts.output, local(1), 1, resume=True)
    assert (again.answered, again.table.equals(table)) == (0, True)


def test_checkpoints_of_another_study_are_refused(tmp_path):
    Checkpoints(Study.of(SMALL), tmp_path / "out.parquet").begin(resume=False)
    other = Study.of({**SMALL, "zip": {"batch": [3]}})
    with pytest.raises(Mismatch, match="belongs to another study"):
        run_sweep(other, tmp_path / "out.parquet", local(1), 1, resume=True)


def test_overlapping_parts_are_refused(tmp_path):
    study = Study.of(SMALL)
    parts = Checkpoints(study, tmp_path / "out.parquet")
    parts.begin(resume=False)
    batch = Batch("decode", study.inputs, parts.columns, study.sha256, 0, list(study.points()))
    parts.save(0, 7, batch_rows(batch))
    parts.save(0, 3, batch_rows(batch))
    with pytest.raises(Mismatch, match="not the 8 points"):
        parts.merge(8)


def test_a_worker_of_another_version_refuses_a_batch():
    study = Study.of(SMALL)
    batch = Batch("decode", study.inputs, pa.schema([]), study.sha256, 0, [], version="0.0.1")
    with pytest.raises(Mismatch, match="worker runs kvoverlap"):
        batch_rows(batch)


def test_the_summary_has_the_best_point_and_the_crossover(tmp_path):
    content = {
        "fixed": {"model": "opt-6.7b", "hardware": "kvpr-a100", "prompt": 512, "batch": 8},
        "grid": {
            "policy": ["load-all", "recompute-all", "lp"],
            "link.bandwidth": [f"{rate}GB/s" for rate in (10, 20, 40, 80, 160)],
        },
    }
    study = Study.of(content)
    table = swept(content, tmp_path)
    found = summarize(study, table)
    assert found.errors == {}
    assert (found.best["policy"], found.best["link.bandwidth"]) == ("lp", 160e9)
    (turn,) = found.crossovers
    assert (turn.what, turn.below, turn.above) == ("policy", "recompute-all", "load-all")
    assert turn.low_bytes_per_s < turn.at_bytes_per_s < turn.high_bytes_per_s

    def makespan_s(policy):
        hardware = with_rate(find_hardware("kvpr-a100"), "link.bandwidth", turn.at_bytes_per_s)
        return policy_s(find_model("opt-6.7b"), hardware, Workload(8, 512, 1), policy)

    assert makespan_s("load-all") == pytest.approx(makespan_s("recompute-all"), rel=0.05)


@pytest.mark.parametrize(
    "path", sorted((DATA / "studies").glob("*.toml")), ids=lambda one: one.stem
)
def test_points_of_shipped_studies_have_no_errors(path, tmp_path):
    study = Study.load(path)
    points = list(study.points())
    chosen = sorted({len(points) * at // 5 for at in range(5)})
    parts = Checkpoints(study, tmp_path / "out.parquet")
    for at in chosen:
        setting = (study.scenario, study.inputs, parts.columns, study.sha256)
        row = pq.read_table(pa.BufferReader(batch_rows(Batch(*setting, at, [points[at]]))))
        assert row.column("error").to_pylist() == [""]
    assert study.title
    assert 10 <= len(points) <= 1000


def test_the_verb_estimates_runs_and_resumes_a_sweep(call, tmp_path):
    study, output = tmp_path / "study.toml", tmp_path / "out.parquet"
    study.write_text(toml(SMALL))
    status, stdout, _ = call("sweep", study, "--dry-run", "--json")
    assert status == 0
    assert json.loads(stdout)["points"] == json.loads(stdout)["missing"] == 8
    assert not output.exists()
    status, stdout, stderr = call("sweep", study, "-o", output, "--jobs", "1")
    assert status == 0
    assert "8 points in" in stdout
    assert "8 of 8 points" in stderr
    status, stdout, _ = call("sweep", study, "-o", output, "--resume", "--json")
    answer = json.loads(stdout)
    assert (status, answer["answered"], answer["points"], answer["errors"]) == (0, 0, 8, {})
    assert answer["best"]["tokens_per_s"] >= answer["worst"]["tokens_per_s"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["pcie-crossove", "-o", "x"], "study 'pcie-crossove' is unknown; did you mean"),
        (["pcie-crossover"], "-o is missing"),
        (["pcie-crossover", "-o", "x", "--executor", "spark"], "executor 'spark' is unknown"),
        (["pcie-crossover", "-o", "x", "--executor", "dask"], "--address(=None) goes with"),
        (["pcie-crossover", "-o", "x", "--jobs", "0"], "--jobs(=0) must be a whole number"),
    ],
)
def test_a_wrong_option_is_one_sentence(call, arguments, sentence):
    status, _, stderr = call("sweep", *arguments)
    assert status == 2
    assert sentence in stderr
