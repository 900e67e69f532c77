"""A model that the GPU has no memory for is refused before anything is measured on it."""

from __future__ import annotations

import pytest

import hw
import hw.environment
from measure.calibrate import specs_to_profile


@pytest.fixture(autouse=True)
def small_gpu(monkeypatch):
    """A GPU of 20 GiB that must not be opened."""
    monkeypatch.setattr(hw, "resolve_device", lambda _: "cuda")
    monkeypatch.setattr(hw, "open_backend", lambda *_: pytest.fail("opened the device"))
    monkeypatch.setattr(hw.environment, "gpu_memory_bytes", lambda: 20 * 2**30)


@pytest.mark.parametrize(
    "words", [("validate", "--out", "run"), ("profile", "-o", "profile.json")], ids=lambda w: w[0]
)
def test_weights_beyond_gpu_memory_are_refused_at_once(call, tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    status, _, stderr = call(*words, "--model", "opt-30b", "--device", "cuda")
    assert status == 2
    assert "the weights of opt-30b in float16 take 55.8 GiB of GPU memory and 20.0 GiB" in stderr
    assert not list(tmp_path.rglob("*.json"))


def test_default_models_are_those_that_fit():
    names = [spec.name for spec in specs_to_profile("cuda", ())]
    assert names == ["opt-1.3b", "opt-6.7b", "llama-3.1-8b"]
