"""Interleaved repeats and their judgement on machines whose noise is simulated."""

from __future__ import annotations

import pytest
from builders import machine, tiny_model

import measure.interleave
from measure.interleave import STEADY_FRAC, MeasuredRun, present_machine, run_interleaved
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
def test_only_disturbed_plans_run_again(monkeypatch, keeps_speed):
    """The speed changes between the samples around the first run of `b`.

    Where a sample serves two runs, that is the third one, else the fourth.
    """
    noisy = Machine([1.0] * (2 if keeps_speed else 3) + [1.5] * 20, keeps_speed=keeps_speed)
    found = noisy.measure(monkeypatch, extra_repeats=2)
    assert noisy.runs == [*"ab", *"ab", *"ab", "b"]
    assert len(found.least_disturbed("b", 3)) == 3
    assert max(run.disturbed_frac for run in found.least_disturbed("b", 3)) <= STEADY_FRAC


def test_a_run_that_others_take_the_core_from_counts_as_disturbed(monkeypatch):
    noisy = Machine([], core_shares=[0.4])
    noisy.measure(monkeypatch, extra_repeats=1)
    assert noisy.runs == [*"ab", *"ab", *"ab", "a"]


def test_plans_run_again_until_their_runs_agree(monkeypatch):
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


def judged(*corrected_s: float, disturbed: bool = False) -> Judgement:
    run = run_of(after=2.0 if disturbed else 1.0)
    return Judgement([JudgedRun(run, seconds, 1.0 / seconds - 1.0, 0.0) for seconds in corrected_s])


def test_an_error_is_judged_if_its_noise_is_low():
    """Errors of 0, 10 and 20 % have a standard error of 10 % / sqrt(3), half as wide ones half."""
    noisy, quieter = judged(1.0, 1 / 1.1, 1 / 1.2), judged(1.0, 1 / 1.05, 1 / 1.1)
    assert (noisy.error_frac, noisy.noise_frac) == pytest.approx((0.1, 0.1 / 3**0.5))
    assert (quieter.error_frac, quieter.noise_frac) == pytest.approx((0.05, 0.05 / 3**0.5))
    assert (noisy.is_judged, quieter.is_judged) == (False, True)
    assert judged(1.15, 1.2, 1.25).is_judged
    assert (judged(1.0, 1.01).is_settled, quieter.is_settled) == (True, False)
    assert (judged(1.0).noise_frac, judged(1.0).is_judged) == (None, False)


def test_the_noise_of_a_comparison_is_that_of_both_plans():
    """Errors of 0, 10 and 20 % have a standard error of 10 % / sqrt(3), in both plans."""
    other = judged(1.0, 1 / 1.1, 1 / 1.2)
    lp = judged(*(0.9 * run.corrected_s for run in other.runs))
    found = regret("kvpr", other, other)
    assert (found.frac, found.noise_frac) == pytest.approx((0.0, 0.1 * (2 / 3) ** 0.5))
    assert regret("kvpr", lp, other).frac == pytest.approx(-0.1)
    assert regret("kvpr", judged(1.0), other) == Regret("kvpr", pytest.approx(0.1), None)


def test_a_regret_counts_beyond_twice_its_noise():
    faster, slower = Regret("kvpr", -0.1, 0.0), Regret("kvpr", 0.03, 0.01)
    noisy, unknown = Regret("kvpr", 0.1, 0.06), Regret("kvpr", 0.2, None)
    assert [one.measured_frac for one in (faster, slower, noisy, unknown)] == [0.0, 0.03, 0.0, 0.0]
    assert largest([noisy, slower, faster]) == slower
    assert largest([noisy, faster]) == noisy


def test_a_machine_is_judged_if_most_cases_have_steady_runs():
    steady, unsteady = judged(1.0, 1.0), judged(1.0, 1.0, disturbed=True)
    assert why_not_judged([steady, steady, steady, unsteady], 4, []) is None
    runs = [run_of(after=after) for after in (1.0, 1.1, 1.2, 1.3)]
    why = why_not_judged([steady, unsteady], 2, runs)
    assert why is not None
    assert "the same matmul varied by 23.5 %" in why
    assert "1 of 2 cases had 2 steady runs and an error with at most 4.0 % of noise" in why


def test_texts_tell_the_time_left_in_steps_of_ten_seconds(monkeypatch):
    seen: list[str] = []

    class Lines(Silent):
        def __call__(self, text, _done=None) -> None:
            seen.append(text)

    monkeypatch.setattr("sim.progress.monotonic", lambda: 26.0)
    for until_s in (100.0, 20.0, float("inf")):
        Timed(Lines(), until_s)("round 1")
    assert seen == ["round 1; at most 70 s left", "round 1; at most 0 s left", "round 1"]
