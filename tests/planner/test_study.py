"""Study files: which points they ask for, and what is wrong with them in one sentence."""

from __future__ import annotations

import pytest
from studies import RESTORE, SMALL, TRAFFIC, toml

from planner.sweep.filters import Filter
from planner.sweep.study import Study
from sim.errors import BadFile, BadInput


def points(**changes):
    study = Study.of({**SMALL, **changes})
    return [dict(zip(study.inputs, point, strict=True)) for point in study.points()]


def test_grid_is_a_product_and_zip_goes_together():
    found = points()
    assert [(one["link.bandwidth"], one["policy"], one["batch"], one["gen"]) for one in found] == [
        (rate, policy, batch, gen)
        for rate in (25e9, 100e9)
        for policy in ("load-all", "lp")
        for batch, gen in ((2, 1), (8, 2))
    ]
    assert {(one["prompt"], one["schedule"], one["kv_bits"]) for one in found} == {(64, "row", 16)}


def test_values_are_written_as_on_the_command_line():
    (one,) = points(
        fixed={**SMALL["fixed"], "prompt": "1K", "gpu_memory": "24GiB", "compute.flops": 1e14},
        grid={"policy": ["fixed:7"]},
        zip={"batch": [3]},
    )
    assert (one["prompt"], one["gpu_memory"], one["compute.flops"]) == (1024, 24 * 2**30, 1e14)


def test_dotted_keys_need_no_quotes(tmp_path):
    path = tmp_path / "study.toml"
    text = toml(SMALL).replace('"link.bandwidth"', "link.bandwidth")
    path.write_text(text)
    assert Study.load(path).sha256 == Study.of(SMALL).sha256


def test_filters_choose_points():
    where = {"a": "batch * gen > 2 and policy == 'lp'", "b": "not link.bandwidth in (25e9, 3)"}
    assert [
        (one["batch"], one["policy"], one["link.bandwidth"]) for one in points(where=where)
    ] == [(8, "lp", 100e9)]


def test_identity_is_that_of_questions_not_of_titles():
    study = Study.of(SMALL)
    assert study.sha256 == Study.of({**SMALL, "title": "other"}).sha256
    assert study.sha256 != Study.of({**SMALL, "where": {"a": "batch > 0"}}).sha256
    assert study.sha256 != Study.of({**SMALL, "zip": {"batch": [2, 9], "gen": [1, 2]}}).sha256


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"gird": {}}, "key 'gird' is unknown; did you mean 'grid'?"),
        ({"scenario": "prefill"}, "scenario(='prefill') must be one of decode, restore, traffic."),
        ({"grid": {"polciy": ["lp"]}}, "input of scenario 'decode', 'polciy' is unknown; did"),
        ({"grid": {"policy": []}}, "grid.policy is an empty list"),
        ({"grid": {"policy": "lp"}}, "grid.policy(='lp') must be a list"),
        ({"grid": {"policy": ["best"]}}, "grid.policy: policy 'best' is unknown"),
        ({"grid": {"policy": ["lp", "lp"]}}, "grid.policy has 'lp' twice"),
        ({"grid": {"prompt": [64]}}, "grid.prompt is set by [fixed] too"),
        ({"grid": {"model": ["opt"]}}, "grid.model is set by [fixed] too"),
        ({"zip": {"batch": [1, 2], "gen": [1]}}, "zip.batch has 2, zip.gen has 1"),
        ({"zip": {"batch": [1, -2]}}, "zip.batch(=-2) must be a whole number of at least 1"),
        ({"zip": {"batch": [1, True]}}, "zip.batch(=True) must be a whole number"),
        ({"zip": {"batch": [1.5]}}, "zip.batch(=1.5) must be a whole number"),
        ({"zip": {}}, "batch is missing; set it under [fixed], [grid] or [zip]."),
        ({"zip": 3}, "zip(=3) must be a table: [zip]."),
        ({"where": {"a": "batch >"}}, "where.a(='batch >') is not an expression"),
        ({"where": {"a": "tokens > 3"}}, "uses 'tokens', which this study does not set"),
        ({"where": {"a": "__import__('os')"}}, "which filters do not know"),
        ({"where": {"a": "batch.real > 1"}}, "uses 'batch.real', which this study does not set"),
        ({"where": {"a": "batch ** 9 > 1"}}, "uses 'batch ** 9', which filters do not know"),
        ({"where": {"a": 3}}, "where.a(=3) must be a text"),
        ({"grid": {"tier": ["ssd"]}}, "'tier' is unknown"),
    ],
)
def test_what_is_wrong_is_one_sentence_that_names_the_key(change, sentence):
    with pytest.raises(BadInput) as caught:
        Study.of({**SMALL, **change})
    assert sentence in str(caught.value)


def test_values_that_cannot_be_compared_name_the_filter():
    study = Study.of({**SMALL, "where": {"a": "policy > batch"}})
    with pytest.raises(BadInput, match=r"where.a\(='policy > batch'\) cannot be evaluated"):
        list(study.points())


def test_arithmetic_is_of_numbers_alone():
    bomb = Filter("where.a", "policy * 9999999999 == 1", {"policy"})
    with pytest.raises(BadInput, match="'lp' is not a number"):
        bomb.holds({"policy": "lp"})


def test_a_study_may_not_be_endless():
    many = list(range(1, 4000))
    with pytest.raises(BadInput, match=r"grid: .* combinations are more than"):
        Study.of({**SMALL, "zip": {}, "grid": {"batch": many, "gen": many}})


def test_a_file_that_is_not_toml(tmp_path):
    path = tmp_path / "study.toml"
    path.write_text("[grid\n")
    with pytest.raises(BadFile, match=r"study.toml is not valid TOML: .*line 1"):
        Study.load(path)


def test_restores_have_their_own_inputs():
    study = Study.of(RESTORE)
    first = dict(zip(study.inputs, next(study.points()), strict=True))
    assert (first["tier"], first["chunk"], first["kv_bits"]) == ("1GB/s", 512, 16)
    with pytest.raises(BadInput, match=r"grid.tier: .*must be|grid.tier\(=\[1\]\) must be"):
        Study.of({**RESTORE, "grid": {"tier": [[1]]}})


def test_a_runtime_may_be_named_for_a_study_that_names_none(tmp_path):
    path = tmp_path / "study.toml"
    path.write_text(toml(RESTORE))
    study = Study.load(path, "vllm")
    assert study.fixed["runtime"] == "vllm"
    assert study.sha256 != Study.load(path).sha256
    with pytest.raises(BadFile, match="runtime 'vlm' is unknown"):
        Study.load(path, "vlm")
    path.write_text(toml({**RESTORE, "fixed": {**RESTORE["fixed"], "runtime": "lmcache"}}))
    with pytest.raises(BadFile, match=r"--runtime\(=vllm\): the study names runtimes"):
        Study.load(path, "vllm")


def test_traffic_is_of_a_trace_or_generated(tmp_path):
    trace = tmp_path / "trace.csv"
    trace.write_text("arrival_s,prompt_tokens,gen_tokens\n0,700,3\n1,900,2\n")
    requests = ("generate", "rate", "seed")
    given = {key: one for key, one in TRAFFIC["fixed"].items() if key not in requests}
    study = Study.of({**TRAFFIC, "fixed": {**given, "trace": str(trace)}})
    (first, *_) = study.points()
    values = dict(zip(study.inputs, first, strict=True))
    assert (values["trace"], values["host_cache"], values["chunk"]) == (str(trace), 0.0, 8192)
    before = study.sha256
    trace.write_text("arrival_s,prompt_tokens,gen_tokens\n0,700,3\n1,900,3\n")
    assert Study.of({**TRAFFIC, "fixed": {**given, "trace": str(trace)}}).sha256 != before
    trace.write_text("arrival_s,prompt_tokens,gen_tokens\n0,700,3\n1,nine,3\n")
    for fixed, sentence in [
        (given, "set trace to a file of requests, or generate to a number of them"),
        ({**given, "trace": str(tmp_path)}, "fixed.trace: cannot read"),
        ({**given, "trace": str(trace)}, "line 3: prompt_tokens(='nine') must be a whole"),
        ({**given, "generate": 9, "trace": "x.csv"}, "generate goes with generated requests"),
        ({**given, "generate": 9, "rate": -1}, "fixed.rate(=-1) must be a number of at least 0"),
        ({**given, "generate": 9, "prompt": 4}, "'prompt' is unknown"),
    ]:
        with pytest.raises(BadInput) as caught:
            Study.of({**TRAFFIC, "fixed": fixed})
        assert sentence in str(caught.value)
