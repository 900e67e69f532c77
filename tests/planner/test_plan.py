"""A plan is a file: it comes back as it was, and an edited one is noticed."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from builders import machine, make_plan, tiny_model

from planner.decode.plan import DecodePlan
from planner.decode.split import Residency, StepSplit, step_splits
from planner.plan_file import Plan
from sim.errors import BadFile, BadInput, Mismatch
from sim.graph.jobs import Workload

JOB = Workload(batch_size=2, prompt_tokens=8, gen_tokens=2)
PLAN = make_plan(tiny_model(), machine(), JOB, "fixed:3")


@pytest.mark.parametrize("name", ["plan.json", "plan.json.gz"])
def test_a_plan_comes_back_from_disk_unchanged(tmp_path, name):
    PLAN.save(tmp_path / name)
    again = DecodePlan.load(tmp_path / name)
    assert again == PLAN
    assert again.simulated_graph().sha256 == PLAN.graph_sha256
    assert Plan.load(tmp_path / name) == PLAN


@pytest.mark.parametrize("document", [[], {"kind": "timeline"}, {"kind": ["plan"]}])
def test_a_file_of_another_kind_is_no_plan(tmp_path, document):
    path = tmp_path / "other.json"
    path.write_text(json.dumps(document))
    with pytest.raises(BadFile, match="not a kvoverlap 'plan' document"):
        Plan.load(path)


def test_the_graph_that_was_simulated_is_built_anew_from_the_split():
    graph = PLAN.simulated_graph()
    assert graph == PLAN.lower()
    assert {one.n_tokens for one in graph.tasks if one.op == "recompute"} == {3}


def edited(tmp_path, change):
    path = tmp_path / "edited.json"
    PLAN.save(path)
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    return path


def move_one_token(document):
    step = document["steps"][1]
    step["recomputed_tokens"][0] += 1
    step["loaded_tokens"][0] -= 1


def test_an_edited_split_no_longer_belongs_to_its_simulation(tmp_path):
    plan = DecodePlan.load(edited(tmp_path, move_one_token))
    assert plan.steps[1].recomputed_tokens == (4, 3)
    with pytest.raises(Mismatch, match=PLAN.graph_sha256[:12]) as failure:
        plan.simulated_graph()
    assert "--plan-out" in str(failure.value)


def test_an_edited_model_no_longer_belongs_to_its_simulation(tmp_path):
    path = edited(tmp_path, lambda document: document["model"].update(vocab_size=65))
    with pytest.raises(Mismatch, match="it was edited"):
        DecodePlan.load(path).simulated_graph()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda plan: plan.update(colour="blue"), "key 'colour' is unknown"),
        (lambda plan: plan["steps"][0].update(colour="blue"), "colour' is unknown"),
        (lambda plan: plan["hardware"]["links"]["h2d"].update(mtu=9), "mtu' is unknown"),
        (lambda plan: plan.pop("steps"), "key 'steps' is missing"),
        (lambda plan: plan.pop("graph_sha256"), "key 'graph_sha256' is missing"),
        (lambda plan: plan["workload"].pop("gen_tokens"), "gen_tokens' is missing"),
        (lambda plan: plan["steps"][0]["loaded_tokens"].append(1), "one entry per layer"),
        (lambda plan: plan["steps"][0].update(loaded_tokens=[5, 4]), "add up to 8"),
        (lambda plan: plan["steps"][0].update(recomputed_tokens=[-3, 3]), "at least 0"),
        (lambda plan: plan["steps"][0].update(step=1), "steps[0] does not belong"),
        (lambda plan: plan["steps"].reverse(), "steps[0] does not belong"),
        (lambda plan: plan["steps"].pop(), "steps"),
        (lambda plan: plan["steps"].append(plan["steps"][0]), "steps"),
        (lambda plan: plan["workload"].update(prompt_tokens=9), "steps[0] does not belong"),
        (lambda plan: plan["workload"].update(batch_size=0), "batch_size(=0)"),
        (lambda plan: plan.update(makespan_s="soon"), "makespan_s(='soon')"),
        (lambda plan: plan.update(kind="timeline"), "holds 'timeline'"),
        (lambda plan: plan.update(schema_version=2), "schema_version 2"),
        (lambda plan: plan.update(schedule="diagonal"), "schedule"),
    ],
)
def test_a_broken_plan_is_refused_with_the_file_and_the_reason(tmp_path, change, reason):
    with pytest.raises(BadFile, match=r"edited\.json") as failure:
        DecodePlan.load(edited(tmp_path, change))
    assert reason in str(failure.value)


def test_a_plan_for_fewer_layers_than_its_model_is_refused(tmp_path):
    def change(document):
        for step in document["steps"]:
            for key in ("recomputed_tokens", "loaded_tokens", "resident_tokens"):
                step[key] = step[key][:1]

    with pytest.raises(BadInput, match="2 layers"):
        DecodePlan.load(edited(tmp_path, change)).simulated_graph()


def test_cut_off_json_is_refused(tmp_path):
    PLAN.save(tmp_path / "plan.json")
    text = (tmp_path / "plan.json").read_text()
    (tmp_path / "plan.json").write_text(text[: len(text) // 2])
    with pytest.raises(BadFile, match=r"plan\.json is not valid JSON"):
        DecodePlan.load(tmp_path / "plan.json")


@pytest.mark.parametrize(
    ("recomputed", "loaded", "resident", "reason"),
    [
        ((3, 3), (5, 6), (0, 0), "layer 1"),
        ((9, 8), (-1, 0), (0, 0), "layer 0"),
        ((3,), (5, 5), (0, 0), "one entry per layer"),
    ],
)
def test_the_parts_of_a_step_are_at_most_its_context(recomputed, loaded, resident, reason):
    with pytest.raises(BadInput, match=reason):
        StepSplit(0, 8, recomputed, loaded, resident)


def test_splits_are_named_step_by_step():
    steps = step_splits(PLAN.model, JOB, [[3, 0], [9, 4]], Residency.nothing(PLAN.model))
    assert steps[0] == StepSplit(0, 8, (3, 0), (5, 8), (0, 0))
    assert steps[1] == StepSplit(1, 9, (9, 4), (0, 5), (0, 0))
    assert [step.median_layer for step in steps] == [(3, 8), (9, 9)]


def test_another_machine_does_not_change_what_is_executed():
    other = replace(PLAN, hardware=machine(h2d=1.0), makespan_s=1.0)
    assert other.simulated_graph().sha256 == PLAN.graph_sha256
