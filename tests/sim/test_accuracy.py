"""Recordings predicted anew: hand-computed errors, tolerances case by case, failing closed."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from builders import JOB, graph, task, unit_machine

from kvoverlap.cli.main import main
from sim.errors import BadFile, BadInput
from sim.graph.timeline import Timeline
from sim.lanes import COMPUTE, H2D
from sim.results.accuracy import CASES, MEASURED, RecordedCase, assess, loosest_tolerance_frac
from sim.results.recording import Recording

CPU = replace(unit_machine(), device_kind="cpu")
GPU = replace(CPU, device_kind="cuda")


def two_tasks(copy_s: int, compute_s: int):
    """A copy and, beside it, work that does not wait for it."""
    return graph(task("load", H2D, copy_s), task("work", COMPUTE, compute_s))


def keep(root, name, made, ends_s, *, hardware=CPU, policy="lp", tolerance_frac=0.1):
    """One case: `ends_s` holds for each repeat when the copy and the work ended."""
    runs = tuple(Timeline(made, (0.0, 0.0), (float(a), float(b))) for a, b in ends_s)
    measured = Recording("measured", hardware, runs, {"device": "bench"})
    folder = root / CASES / name
    measured.save(folder / MEASURED)
    RecordedCase(policy, tolerance_frac).save(folder)
    return folder


@pytest.fixture
def root(tmp_path):
    return tmp_path / "mine"


def test_errors_are_predicted_minus_measured(root):
    keep(root, "a", two_tasks(4, 10), [(4.0, 10.5)])
    (case,) = assess(root).cases
    assert case.name == "mine/a"
    assert (case.device, case.policy, case.batch_size) == ("bench", "lp", JOB.batch_size)
    assert case.makespan_error_frac == pytest.approx(10 / 10.5 - 1)
    assert case.naive_error_frac == pytest.approx(10 / 10.5 - 1)
    assert case.teacher_forced_error_frac == pytest.approx(0)
    assert case.overlap_error_points == pytest.approx(0)
    assert case.exposed_copy_error_s == pytest.approx(0)
    assert case.passed
    assert case.reason == ""


def test_each_error_is_held_against_the_tolerance(root):
    keep(root, "makespan", two_tasks(4, 10), [(4.0, 12.0)])
    keep(root, "overlap", two_tasks(4, 10), [(4.0, 10.0)])
    keep(root, "exposed", two_tasks(10, 4), [(10.0, 4.0)])
    late = Timeline(two_tasks(4, 10), (0.0, 1.0), (4.0, 10.0))
    Recording("measured", CPU, (late,)).save(root / CASES / "overlap" / MEASURED)
    early = Timeline(two_tasks(10, 4), (0.0, 0.0), (10.0, 2.5))
    Recording("measured", CPU, (early,)).save(root / CASES / "exposed" / MEASURED)
    cases = {case.name: case for case in assess(root).cases}
    assert cases["mine/makespan"].reason.startswith(
        "case mine/makespan: makespan 10,000.0 ms predicted, 12,000.0 ms measured, -16.7 %; "
        "tolerance 10.0 %; worst task work"
    )
    assert cases["mine/overlap"].overlap_error_points == pytest.approx(25)
    assert "overlap off by +25.0 points" in cases["mine/overlap"].reason
    assert cases["mine/exposed"].exposed_copy_error_s == pytest.approx(6 - 7.5)
    assert "exposed copy time off by -1,500.0 ms" in cases["mine/exposed"].reason
    assert not any(case.passed for case in cases.values())


def test_a_case_passes_by_its_own_tolerance_and_not_by_the_mean(root):
    for number in range(9):
        keep(root, f"good{number}", two_tasks(4, 10), [(4.0, 10.0)])
    assert assess(root).passed
    keep(root, "bad", two_tasks(4, 10), [(4.0, 12.0)])
    found = assess(root)
    assert found.median_abs_error_frac == 0
    assert found.p90_abs_error_frac == 0
    assert not found.passed


def test_no_case_can_give_itself_more_than_the_rule_allows(root):
    steady = [(4.0, 10.0)] * 5
    noisy = [(4.0, 9.0), (4.0, 9.0), (4.0, 10.0), (4.0, 11.0), (4.0, 11.0)]
    limits = [
        (CPU, steady, 0.10),
        (GPU, steady, 0.05),
        (CPU, noisy, 0.40),
        (GPU, noisy, 0.40),
    ]
    for hardware, ends, limit in limits:
        folder = keep(root, "a", two_tasks(4, 10), ends, hardware=hardware, tolerance_frac=limit)
        assert loosest_tolerance_frac(Recording.load(folder / MEASURED)) == pytest.approx(limit)
        assert assess(root).passed
        RecordedCase("lp", limit * 1.01).save(folder)
        assert "tolerance looser than" in assess(root).cases[0].reason


def test_ranks_count_pairs_of_one_shape_that_are_measured_apart(root):
    keep(root, "a", two_tasks(4, 10), [(4.0, 10.0)])
    keep(root, "b", two_tasks(4, 11), [(4.0, 10.05)])
    assert assess(root).rank_agreement_frac is None
    keep(root, "c", two_tasks(4, 12), [(4.0, 12.0)])
    keep(root, "d", two_tasks(4, 13), [(4.0, 9.0)])
    # a-c, b-c and none of d's three pairs; a-b are within a per cent of each other
    assert assess(root).rank_agreement_frac == pytest.approx(2 / 5)
    other = replace(two_tasks(4, 5), workload=replace(JOB, prompt_tokens=9))
    keep(root, "e", other, [(4.0, 50.0)])
    assert assess(root).rank_agreement_frac == pytest.approx(2 / 5)


def test_another_description_of_the_machine_predicts_the_recorded_graph(root):
    keep(root, "a", two_tasks(4, 10), [(4.0, 10.0)])
    slow = CPU.with_faster("flops", 0.5).with_faster("hbm", 0.5)
    (case,) = assess(root, slow).cases
    assert case.makespan_error_frac == pytest.approx(1.0)
    other_bytes = replace(CPU, dtype="bfloat16" if CPU.dtype == "float32" else "float32")
    found = assess(root, other_bytes)
    assert not found.cases
    assert "name a machine for elements of the same size" in found.unreadable[0]


def test_a_machine_is_for_recordings_and_not_for_published_figures(capsys):
    assert main(["accuracy", "--published", "--hardware", "h100"]) == 2
    assert "--hardware(=h100)" in capsys.readouterr().err


@pytest.mark.parametrize("spoilt", [MEASURED, "case.json"])
@pytest.mark.parametrize("content", [None, b"", b"{", b'{"kind": "plan"}'])
def test_what_cannot_be_read_fails_the_gate(root, capsys, spoilt, content):
    keep(root, "a", two_tasks(4, 10), [(4.0, 10.0)])
    folder = keep(root, "b", two_tasks(4, 10), [(4.0, 10.0)])
    if content is None:
        (folder / spoilt).unlink()
    else:
        (folder / spoilt).write_bytes(content)
    found = assess(root)
    assert len(found.cases) == 1
    assert str(folder / spoilt) in found.unreadable[0]
    assert not found.passed
    assert main(["accuracy", "--recordings", str(root)]) == 0
    assert main(["accuracy", "--recordings", str(root), "--gate"]) == 1
    assert spoilt in capsys.readouterr().out


def test_nothing_recorded_is_refused(tmp_path, capsys):
    with pytest.raises(BadFile, match="holds no recording"):
        assess(tmp_path)
    assert main(["accuracy", "--recordings", str(tmp_path), "--gate"]) == 2
    assert "holds no recording" in capsys.readouterr().err


@pytest.mark.parametrize("tolerance", [0.0, -1.0, float("inf"), float("nan")])
def test_a_tolerance_is_a_positive_number(tolerance):
    with pytest.raises(BadInput, match="tolerance_frac"):
        RecordedCase("lp", tolerance)


def test_json_has_the_contract_s_keys_and_a_folder_may_hold_several(tmp_path, capsys):
    for name in ("one", "two"):
        keep(tmp_path / name, "a", two_tasks(4, 10), [(4.0, 10.0)])
    assert main(["accuracy", "--recordings", str(tmp_path), "--gate", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert {case["name"] for case in answer["cases"]} == {"one/a", "two/a"}
    assert set(answer) >= {"median_abs_error_frac", "p90_abs_error_frac", "rank_agreement_frac"}
    assert set(answer["cases"][0]) >= {
        "name",
        "device",
        "makespan_error_frac",
        "overlap_error_points",
        "exposed_copy_error_s",
        "tolerance_frac",
        "spread_frac",
        "naive_error_frac",
        "passed",
    }


def test_github_gets_annotations_and_a_summary(root, tmp_path, capsys, monkeypatch):
    keep(root, "good", two_tasks(4, 10), [(4.0, 10.0)])
    keep(root, "bad", two_tasks(4, 10), [(4.0, 12.0)])
    summary, table = tmp_path / "summary.md", tmp_path / "table.md"
    summary.write_text("earlier\n")
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    call = ["accuracy", "--recordings", str(root), "--gate", "--markdown", str(table)]
    assert main(call) == 1
    captured = capsys.readouterr()
    assert "::error title=kvoverlap accuracy::case mine/bad: makespan" in captured.err
    assert "mine/good" not in captured.err
    assert "gate: FAILED" in captured.out
    assert summary.read_text() == "earlier\n" + table.read_text()
    assert "| mine/good | 10,000.0 ms | 10,000.0 ms | +0.0 % |" in table.read_text()
