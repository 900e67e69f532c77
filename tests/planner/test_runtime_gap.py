"""What a runtime leaves on the table: times in order, and launch lines of documented options."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from builders import machine, tiny_model

from planner import Job
from planner.advice.runtime_gap import runtime_gap
from sim.catalog import find_hardware, find_model, find_runtime, hub_id, runtime_names
from sim.errors import BadInput, NotMeasured
from sim.graph.jobs import Workload

PAGE = (Path(__file__).parents[2] / "docs" / "advise.md").read_text(encoding="utf-8")
LLAMA = find_model("llama-3.1-8b")
JOB = Job(LLAMA, find_hardware("h100-sxm+pcie5-x16"), Workload(2, 3000, 1))
GIB = 2**30


@pytest.mark.parametrize("name", ["vllm", "lmcache", "sglang-hicache"])
def test_the_best_schedule_is_not_slower_than_the_runtime_with_any_setting(name):
    gap = runtime_gap(find_runtime(name), JOB, "fast")
    times = [one.seconds for one in gap.variants]
    assert times == sorted(times)
    assert len(times) == len(find_runtime(name).variants)
    assert gap.best.seconds <= min(*times, gap.own.seconds)
    assert gap.closest.seconds == min(*times, gap.own.seconds)
    assert gap.sentence.startswith(f"{name}: first token of a later request")
    assert f"the best schedule on this machine {1e3 * gap.best.seconds:.1f}." in gap.sentence


def test_a_launch_line_asks_for_the_memory_of_the_job():
    gap = runtime_gap(find_runtime("vllm"), JOB, "fast")
    assert gap.own.launch.startswith(f"vllm serve {hub_id(LLAMA)} --kv-offloading-backend native")
    assert "--kv-offloading-size 1 --gpu-memory-utilization 0.92" in gap.own.launch
    assert gap.host_bytes == 2 * 3001 * 32 * LLAMA.kv_token_bytes
    free = 0.92 * 80 * GIB - GIB - LLAMA.weight_bytes
    assert gap.pool_tokens == int(free // (32 * LLAMA.kv_token_bytes))
    assert f"--max-model-len {min(131072, gap.pool_tokens)}" in gap.own.launch
    assert "$" not in "".join(one.launch for one in (gap.own, *gap.variants))


def test_a_batch_that_fills_the_gpu_raises_its_part_of_the_memory():
    batch = Job(LLAMA, JOB.hardware, Workload(165, 3000, 1))
    gap = runtime_gap(find_runtime("vllm"), batch, "fast")
    assert gap.gpu_frac == 0.95  # weights and cache take 96 %, and at most 95 % are asked for


def test_gpus_that_share_the_model_are_in_the_launch_line():
    job = Job(find_model("llama-3.1-8b").shard(2), JOB.hardware, JOB.workload)
    gap = runtime_gap(find_runtime("vllm"), job, "fast")
    assert gap.own.launch.endswith("--tensor-parallel-size 2")


def test_a_runtime_that_decodes_from_host_memory_is_asked_for_a_step():
    job = Job(tiny_model(n_layers=4), machine(), Workload(2, 40, 1))
    gap = runtime_gap(find_runtime("llama.cpp"), job)
    (ring,) = gap.variants
    assert gap.best.seconds <= ring.seconds < gap.own.seconds
    assert ring.launch == ""  # a fork's, which no option of llama.cpp starts
    assert gap.closest is gap.own
    assert gap.own.launch == "llama-server -m tiny.gguf -ngl 99 -nkvo -c 4096"


def test_variants_whose_copies_are_not_known_are_left_out_and_runtimes_refused():
    job = Job(LLAMA, find_hardware("h100-sxm+25GB/s"), JOB.workload)
    gap = runtime_gap(find_runtime("vllm"), job, "fast")
    assert [one.label for one in gap.variants] == ["larger blocks"]
    with pytest.raises(NotMeasured, match="no figures of kernel copies"):
        runtime_gap(find_runtime("lmcache"), job, "fast")
    with pytest.raises(BadInput, match="share one memory"):
        runtime_gap(find_runtime("vllm"), Job(LLAMA, find_hardware("dgx-spark"), JOB.workload))


@pytest.mark.parametrize("name", runtime_names())
def test_every_option_of_a_launch_line_is_on_the_page_with_its_documentation(name):
    runtime = find_runtime(name)
    for one in (runtime, *runtime.variants):
        for option in re.findall(r"--[a-z-]+|\bLMCACHE_\w+|(?<= )-[a-z]+", one.launch):
            assert f"`{option}" in PAGE, option
        assert one.page in PAGE or not one.launch


def test_advise_prints_the_gap_and_the_line_to_paste(call):
    words = "advise --model opt-125m --hardware h100-sxm --batch 1 --prompt 900 --runtime vllm"
    status, out, _ = call(*words.split(), "--engine", "fast")
    assert status == 0
    assert "vllm: first token of a later request with this prompt after" in out
    assert "LMCACHE_USE_LAYERWISE=True vllm serve facebook/opt-125m" in out
    assert "92.0 % of GPU memory" in out


def test_the_answer_in_json_says_what_is_left():
    gap = runtime_gap(find_runtime("vllm"), JOB, "fast")
    answer = json.loads(json.dumps(gap.to_dict()))
    assert answer["left_s"] == pytest.approx(answer["own"]["seconds"] - answer["best"]["seconds"])
    assert answer["closest"]["launch"] == gap.closest.launch
    assert answer["sentence"] == gap.sentence
