"""Interleaved repeats and their judgement on machines whose noise is simulated."""

from __future__ import annotations

from dataclasses import replace

import pytest
from builders import machine, tiny_model

import measure.interleave
from measure.interleave import (
    LINK,
    STEADY_FRAC,
    MeasuredRun,
    present_machine,
    run_interleaved,
)
from measure.judgement import (
    JudgedRun,
    Judgement,
    Regret,
    judge_run,
    largest,
    regret,
    why_not_judged,
)
from planner import Job, PlanOptions, make_plan
from sim import Workload
from sim.graph.timeline import Timeline
from sim.progress import Silent, Timed

PROFILE = machine()
PLAN = make_plan(Job(tiny_model(), PROFILE, Workload(2, 16, 2)), PlanOptions(policy="load-all"))
TIMELINE = PLAN.simulate()
QUIET = {"flops": 1.0, "hbm": 1.0}


def slower(ratio: float) -> dict[str, float]:
    return {part: ratio * value for part, value in QUIET.items()}


def run_of(before=1.0, after=1.0, core_share=1.0, timeline=TIMELINE) -> MeasuredRun:
    return MeasuredRun(timeline, slower(before), slower(after), core_share)


class Machine:
    """A machine and its clock: each run takes 10 s, and the samples follow a list."""

    def __init__(self, ratios, core_shares=(), keeps_speed=False) -> None:
        self.now_s, self.keeps_speed = 0.0, keeps_speed
        self.ratios, self.core_shares = iter(ratios), iter(core_shares)
        self.runs: list[str] = []

    def sample(self, **_: bool) -> dict[str, float]:
        return slower(next(self.ratios, 1.0))

    def runner(self, name):
        def run() -> tuple[Timeline, float]:
            self.now_s += 10.0
            self.runs.append(name)
            return TIMELINE, next(self.core_shares, 1.0)

        return run

    def measure(self, monkeypatch, names="ab", **options):
        monkeypatch.setattr(measure.interleave, "monotonic", lambda: self.now_s)
        runners = {name: self.runner(name) for name in names}
        return run_interleaved(runners, self, 3, Silent(), **options)


def test_on_a_steady_machine_every_plan_has_its_repeats_in_turn(monkeypatch):
    quiet = Machine([])
    found = quiet.measure(monkeypatch)
    assert quiet.runs == list("ababab")
    assert all(run.disturbed_frac == 0 for run in found.all_runs)


@pytest.mark.parametrize("keeps_speed", [False, True])
def test_a_run_is_disturbed_if_the_speed_changes_around_it(monkeypatch, keeps_speed):
    """The speed changes between the samples around the first run of `b`.

    Where a sample serves two runs, that is the third one, else the fourth.
    """
    noisy = Machine([1.0] * (2 if keeps_speed else 3) + [1.5] * 20, keeps_speed=keeps_speed)
    found = noisy.measure(monkeypatch)
    disturbed = {
        name: [run.disturbed_frac > STEADY_FRAC for run in runs]
        for name, runs in found.runs.items()
    }
    assert disturbed == {"a": [False, False, False], "b": [True, False, False]}
    assert found.least_disturbed("b", 2) == found.runs["b"][1:]


def test_a_run_that_others_take_the_core_from_counts_as_disturbed(monkeypatch):
    noisy = Machine([], core_shares=[0.4])
    found = noisy.measure(monkeypatch)
    assert [run.disturbed_frac > STEADY_FRAC for run in found.runs["a"]] == [True, False, False]


def test_plans_run_again_until_they_are_settled(monkeypatch):
    noisy = Machine([])
    noisy.measure(
        monkeypatch,
        extra_repeats=3,
        settled=lambda name: name == "a" or noisy.runs.count(name) >= 5,
    )
    assert noisy.runs == [*"ab", *"ab", *"ab", "b", "b"]


@pytest.mark.parametrize(("until_s", "rounds"), [(0.0, 2), (45.0, 2), (60.0, 3), (1e9, 3)])
def test_no_repeat_begins_that_would_end_too_late(monkeypatch, until_s, rounds):
    busy = Machine([])
    busy.measure(monkeypatch, until_s=until_s)
    assert busy.runs == list("ab") * rounds


def test_a_long_plan_that_would_end_too_late_leaves_the_time_to_shorter_ones(monkeypatch):
    busy = Machine([])
    long, short = busy.runner("a"), busy.runner("b")

    def twice_as_long() -> tuple[Timeline, float]:
        busy.now_s += 10.0
        return long()

    monkeypatch.setattr(measure.interleave, "monotonic", lambda: busy.now_s)
    run_interleaved({"a": twice_as_long, "b": short}, busy, 3, Silent(), until_s=75.0)
    assert (busy.runs, busy.now_s) == (list("ababb"), 70.0)


def test_ctrl_c_while_a_run_is_judged_leaves_only_judged_runs(monkeypatch):
    judged_names: list[str] = []

    def judge(name: str, _: MeasuredRun) -> None:
        if len(judged_names) == 3:
            raise KeyboardInterrupt
        judged_names.append(name)

    found = Machine([]).measure(monkeypatch, finished=judge)
    assert found.interrupted
    assert {name: len(runs) for name, runs in found.runs.items()} == {"a": 2, "b": 1}


def test_each_finished_run_is_reported(monkeypatch):
    seen: list[str] = []
    Machine([]).measure(monkeypatch, finished=lambda name, _: seen.append(name))
    assert seen == list("ababab")


def test_the_speed_of_a_run_is_the_mean_of_both_samples_over_the_share_of_the_core():
    assert run_of(1.0, 1.2, 0.5).speed == pytest.approx(slower(2.2))


def test_late_copies_move_the_prediction_and_not_the_plan():
    late = {**QUIET, "copy": 1.5}
    run = MeasuredRun(PLAN.simulate(hardware=PROFILE.with_faster("link", 1 / 1.5)), late, late)
    assert run.disturbed_frac == 0
    assert judge_run(PLAN, PROFILE, run).error_frac == pytest.approx(0.0, abs=1e-12)

    class Probe:
        def drift(self, _samples):
            return late

    assert present_machine(PROFILE, Probe(), "cpu", 1) == (PROFILE, late)


@pytest.mark.parametrize("ratio", [0.7, 1.0, 2.5])
def test_a_slow_minute_moves_prediction_and_measurement_alike(ratio):
    """A machine of which all compute takes `ratio` times as long, without any other error."""
    part = PROFILE.with_faster("flops", 1 / ratio).with_faster("hbm", 1 / ratio)
    measured = run_of(ratio, ratio, timeline=PLAN.simulate(hardware=part))
    judged = judge_run(PLAN, PROFILE, measured)
    assert judged.error_frac == pytest.approx(0.0, abs=1e-12)
    assert judged.overlap_error_points == pytest.approx(0.0, abs=1e-9)
    assert judged.corrected_s == pytest.approx(PLAN.makespan_s)


def judged(*corrected_s: float, run: MeasuredRun | None = None) -> Judgement:
    return Judgement(
        [JudgedRun(run or run_of(), seconds, 1.0 / seconds - 1.0, 0.0) for seconds in corrected_s]
    )


def test_an_error_is_judged_if_its_noise_is_low():
    """Errors of 0, 10 and 20 % have a standard error of 10 % / sqrt(3), half as wide ones half.

    Student's t widens that of three values by 1.32.
    """
    wide, narrow = judged(1.0, 1 / 1.1, 1 / 1.2), judged(1.0, 1 / 1.05, 1 / 1.1)
    assert (wide.error_frac, wide.noise_frac) == pytest.approx((0.1, 1.32 * 0.1 / 3**0.5))
    assert (narrow.error_frac, narrow.noise_frac) == pytest.approx((0.05, 1.32 * 0.05 / 3**0.5))
    assert (wide.is_judged, narrow.is_judged) == (False, True)
    assert judged(1.15, 1.2, 1.25).is_judged
    assert (judged(1.0).noise_frac, judged(1.0).is_judged) == (None, False)


def test_an_overlap_that_differs_from_run_to_run_is_not_judged_though_the_times_agree():
    """Overlap errors of -8 and 8 points have a standard error of 8 points, widened by 1.84."""
    found = Judgement([JudgedRun(run_of(), 1.0, 0.0, points) for points in (-8.0, 8.0)])
    assert found.overlap_noise_points == pytest.approx(1.84 * 8)
    assert (found.noise_frac, found.is_judged) == (0.0, False)


def test_a_plan_is_settled_after_enough_runs_that_agree():
    agreeing = judged(1.0, 1.01, 1.0)
    assert (agreeing.is_settled(3), agreeing.is_settled(4)) == (True, False)
    assert not judged(1.0, 1 / 1.05, 1 / 1.1).is_settled(3)


def test_runs_over_a_link_that_lost_its_pace_are_not_judged_though_they_agree():
    slow_link = {**QUIET, LINK: 2.0}
    disturbed = MeasuredRun(TIMELINE, slow_link, slow_link)
    assert not judged(1.0, 1.0, 1.0, run=disturbed).is_judged
    assert judged(1.0, 1.0, 1.0, run=replace(disturbed, before=QUIET, after=QUIET)).is_judged


def test_the_noise_of_a_comparison_is_that_of_both_plans():
    """Errors of 0, 10 and 20 % have a noise of 1.32 * 10 % / sqrt(3), in both plans."""
    other = judged(1.0, 1 / 1.1, 1 / 1.2)
    lp = judged(*(0.9 * run.corrected_s for run in other.runs))
    found = regret("kvpr", other, other)
    assert (found.frac, found.noise_frac) == pytest.approx((0.0, 1.32 * 0.1 * (2 / 3) ** 0.5))
    assert regret("kvpr", lp, other).frac == pytest.approx(-0.1)
    assert regret("kvpr", judged(1.0), other) == Regret("kvpr", pytest.approx(0.1), None)


def test_a_regret_counts_beyond_twice_its_noise():
    faster, slower = Regret("kvpr", -0.1, 0.0), Regret("kvpr", 0.03, 0.01)
    noisy, unknown = Regret("kvpr", 0.1, 0.06), Regret("kvpr", 0.2, None)
    assert [one.measured_frac for one in (faster, slower, noisy, unknown)] == [0.0, 0.03, 0.0, 0.0]
    assert largest([noisy, slower, faster]) == slower
    assert largest([noisy, faster]) == noisy


def test_a_machine_is_judged_if_the_errors_of_most_cases_are():
    sure, unsure = judged(1.0, 1.0), judged(1.0, 1.2)
    assert why_not_judged([sure, sure, sure, unsure], 4, []) is None
    runs = [run_of(after=after) for after in (1.0, 1.1, 1.2, 1.3)]
    why = why_not_judged([sure, unsure], 2, runs)
    assert why is not None
    assert "the same matmul varied by 23.5 %" in why
    assert "1 of 2 cases had an error with at most 4.0 % of noise" in why


def test_texts_tell_the_time_left_in_steps_of_ten_seconds(monkeypatch):
    seen: list[str] = []

    class Lines(Silent):
        def __call__(self, text, _done=None) -> None:
            seen.append(text)

    monkeypatch.setattr("sim.progress.monotonic", lambda: 26.0)
    for until_s in (100.0, 20.0, float("inf")):
        Timed(Lines(), until_s)("round 1")
    assert seen == ["round 1; at most 70 s left", "round 1; at most 0 s left", "round 1"]
