"""Everything shipped loads by name, and a wrong name gets a useful answer."""

from __future__ import annotations

import pytest
from builders import machine

from sim.catalog import DATA, find_hardware, find_model, hardware_names, model_names
from sim.errors import BadFile, BadInput, UnknownName


@pytest.mark.parametrize("name", model_names())
def test_every_shipped_model_loads_under_its_name(name):
    model = find_model(name)
    assert model.name == name
    assert model.n_layers > 1
    assert model == find_model(str(DATA / "models" / f"{name}.json"))


@pytest.mark.parametrize("name", hardware_names())
def test_every_shipped_profile_loads_under_its_name(name):
    hardware = find_hardware(name)
    assert hardware.name == name
    assert hardware == find_hardware(str(DATA / "hardware" / f"{name}.json"))


def test_the_models_that_the_studies_need_are_shipped():
    assert {"opt-6.7b", "opt-13b", "opt-30b", "llama-3.1-8b", "qwen3-8b"} <= set(model_names())
    assert "kvpr-a100" in hardware_names()


def test_names_are_found_in_any_case():
    assert find_model("OPT-13B") == find_model("opt-13b")
    assert find_hardware("KVPR-A100") == find_hardware("kvpr-a100")


@pytest.mark.parametrize(
    ("wrong", "right"), [("opt-13", "opt-13b"), ("lama-3.1-8b", "llama-3.1-8b")]
)
def test_an_unknown_model_suggests_the_nearest(wrong, right):
    with pytest.raises(UnknownName, match=rf"did you mean '{right}'\? A path"):
        find_model(wrong)


def test_an_unknown_machine_suggests_the_nearest():
    with pytest.raises(UnknownName, match="did you mean 'kvpr-a100'"):
        find_hardware("kvpr-a1000")


def test_a_name_like_none_of_them_lists_them_all():
    with pytest.raises(UnknownName) as failure:
        find_model("zzz")
    assert all(name in str(failure.value) for name in model_names())


def test_another_element_type_can_be_asked_for():
    model = find_model("opt-13b", dtype="float32")
    assert (model.dtype, model.kv_token_bytes) == ("float32", 40 << 10)
    with pytest.raises(BadInput, match=r"dtype\(='int8'\) must be one of"):
        find_model("opt-13b", dtype="int8")


def test_a_profile_of_ones_own_is_found_by_path(tmp_path):
    machine().save(tmp_path / "mine.json")
    assert find_hardware(str(tmp_path / "mine.json")) == machine()


def test_a_file_of_another_kind_is_no_profile(tmp_path):
    (tmp_path / "mine.json").write_text('{"kind": "plan"}')
    with pytest.raises(BadFile, match="holds 'plan'"):
        find_hardware(str(tmp_path / "mine.json"))
