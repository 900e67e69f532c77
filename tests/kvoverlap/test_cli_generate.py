"""`kvoverlap generate` continues prompts token for token as `transformers` does."""

from __future__ import annotations

import json
import re
import shlex

import pytest
import torch
from builders import machine
from checkpoints import CONFIGS, add_tokenizer, save, seeded
from tiny import shorten_profiles

from hw.backends.cuda import cuda_available
from sim import Recording
from sim.graph.memory import needed_rows

needs_cuda = pytest.mark.skipif(not cuda_available(), reason="torch sees no CUDA device")
N_NEW = 7
PROMPT = 20
PROMPTS = torch.randint(1, 331, (2, PROMPT), generator=torch.Generator().manual_seed(4))
CASES = {"opt": False, "llama": True, "mistral-window": False}
"""Family, and whether its checkpoint is in shards."""


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
    """(directory, the greedy tokens of `transformers` on it)."""
    directory = tmp_path_factory.mktemp(request.param)
    theirs = seeded(CONFIGS[request.param]())
    save(theirs, directory, sharded=CASES[request.param])
    return directory, continued(theirs)


@pytest.fixture
def llama(tmp_path):
    return save(seeded(CONFIGS["llama"]()), tmp_path / "llama")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A machine on which the LP recomputes some tokens and loads others, and the prompts."""
    folder = tmp_path_factory.mktemp("files")
    machine(h2d=4e7, d2h=4e7, dtype="float32", name="slow-link").save(folder / "slow-link.json")
    machine(name="half").save(folder / "half.json")
    (folder / "ids.json").write_text(json.dumps(PROMPTS.tolist()))
    return folder


@pytest.fixture
def generate(call, files):
    """Continue the prompts on the cpu device for the slow link; returns the JSON answer."""

    def run(directory, *more, n_new=N_NEW, ids=files / "ids.json"):
        arguments = ["generate", "--weights", directory, "--device", "cpu", "--json"]
        arguments += [] if ids is None else ["--prompt-ids", ids]
        if "--plan" not in more:
            arguments += ["--hardware", files / "slow-link.json"]
        status, stdout, stderr = call(*arguments, "--max-new-tokens", n_new, *more)
        assert status == 0, stderr
        return json.loads(stdout)

    return run


@pytest.fixture
def refused(call, files):
    """A `generate` that must be refused; returns its sentence."""

    def run(directory, *more, n_new=N_NEW, ids=files / "ids.json"):
        arguments = ["generate", "--weights", directory, "--device", "cpu"]
        arguments += [] if ids is None else ["--prompt-ids", ids]
        status, stdout, stderr = call(*arguments, "--max-new-tokens", n_new, *more)
        assert (status, stdout) == (2, "")
        (line,) = (line for line in stderr.splitlines() if line.startswith("error: "))
        assert "Traceback" not in stderr
        return line

    return run


@torch.inference_mode()
def continued(theirs, eos=None, n_new=N_NEW) -> list[list[int]]:
    """What `transformers` appends to the prompts, each until its own end."""
    tokens = theirs.generate(
        PROMPTS,
        attention_mask=torch.ones_like(PROMPTS),
        do_sample=False,
        max_new_tokens=n_new,
        eos_token_id=eos,
        pad_token_id=0,
    )[:, PROMPT:].tolist()
    if eos is None:
        return tokens
    ends = [next((at for at, token in enumerate(row) if token in eos), n_new) for row in tokens]
    return [row[: end + 1] for row, end in zip(tokens, ends, strict=True)]


@pytest.mark.parametrize("policy", ["lp", "load-all", "recompute-all"])
def test_tokens_are_those_of_transformers(case, generate, policy):
    directory, expected = case
    answer = generate(directory, "--policy", policy)
    assert answer["token_ids"] == expected
    assert len({token for row in expected for token in row}) > N_NEW
    decode, counts = answer["decode"], answer["decode"]["recomputed_tokens"]
    assert decode["policy"] == policy
    if policy == "load-all":
        assert set(counts) == {0}
    elif policy == "recompute-all":
        window = CONFIGS["mistral-window"]().sliding_window
        windowed = answer["model"].startswith("mistral-window")
        assert set(counts) == {window - 1 if windowed else PROMPT}
    elif answer["model"].startswith("opt"):
        assert 0 < sum(counts) < PROMPT * len(counts)


@pytest.mark.parametrize("name", ["gemma3", "gpt-oss", "deepseek", "mixtral"])
def test_other_families_continue_as_transformers_does(name, generate, tmp_path):
    theirs = seeded(CONFIGS[name]())
    answer = generate(save(theirs, tmp_path))
    assert answer["token_ids"] == continued(theirs)


@pytest.mark.gpu
@needs_cuda
def test_a_gpu_generates_the_same_and_counts_its_memory(case, call, files):
    directory, expected = case
    arguments = ["generate", "--weights", directory, "--device", "cuda", "--dtype", "float32"]
    arguments += ["--prompt-ids", files / "ids.json", "--hardware", files / "slow-link.json"]
    status, stdout, stderr = call(*arguments, "--max-new-tokens", N_NEW, "--json")
    assert status == 0, stderr
    answer = json.loads(stdout)
    assert answer["token_ids"] == expected
    assert answer["memory"]["device_source"] == "allocated"


def test_the_answer_adds_up(case, generate, tmp_path):
    directory, _ = case
    measured = tmp_path / "measured.json"
    answer = generate(directory, "-o", measured, "--trace", tmp_path / "trace.json.gz")
    decode, timeline = answer["decode"], Recording.load(measured).typical
    assert decode["steps"] == N_NEW - 1 == timeline.graph.workload.gen_tokens
    assert decode["graph_sha256"] == timeline.graph.sha256
    assert decode["makespan_s"] == timeline.makespan_s
    assert decode["tokens_per_s"] == pytest.approx(2 * (N_NEW - 1) / timeline.makespan_s)
    lanes = [timeline.busy_s(lane) for lane in ("compute", "h2d", "d2h")]
    assert decode["busiest_lane_step_s"] * decode["steps"] == pytest.approx(max(lanes))
    assert decode["exposed_copy_s"] == timeline.exposed_copy_s
    assert 0 <= decode["overlap_frac"] <= 1
    assert answer["prefill_s"] > 0
    assert (tmp_path / "trace.json.gz").stat().st_size > 100
    model = timeline.graph.model
    rows = needed_rows(timeline.graph)
    kv_bytes = sum(one.n_kv for one in rows) * model.kv_token_bytes
    x_bytes = sum(one.n_x for one in rows) * model.x_token_bytes
    assert answer["memory"]["host_bytes"] == 2 * (kv_bytes + x_bytes)
    assert answer["memory"]["device_bytes"] > model.weight_bytes
    assert answer["memory"]["device_source"] == "planned"
    assert answer["memory"]["process_bytes"] > answer["memory"]["device_bytes"]


def test_one_new_token_is_the_prefills(case, generate):
    directory, expected = case
    answer = generate(directory, n_new=1)
    assert answer["token_ids"] == [row[:1] for row in expected]
    assert answer["decode"] is None


def test_warm_ups_leave_the_tokens_as_they_are(case, generate):
    directory, expected = case
    assert generate(directory, "--warm-ups", 2)["token_ids"] == expected


def test_a_plan_file_of_another_name_but_the_same_shape(case, call, generate, files, tmp_path):
    directory, expected = case
    path = tmp_path / "plan.json"
    named = tmp_path / "published-name.json"
    named.write_text((directory / "config.json").read_text())
    job = f"--batch 2 --prompt {PROMPT} --gen {N_NEW - 1} --policy fixed:5".split()
    machine_file = files / "slow-link.json"
    assert call("plan", "--model", named, "--hardware", machine_file, *job, "-o", path)[0] == 0
    answer = generate(directory, "--plan", path)
    assert answer["token_ids"] == expected
    assert answer["model"] == "published-name"
    assert set(answer["decode"]["recomputed_tokens"]) == {5}


def test_a_column_plan_brings_the_weights_from_the_host(case, call, generate, files, tmp_path):
    directory, expected = case
    path, resident = tmp_path / "plan.json", generate(directory)["memory"]
    job = f"--batch 2 --prompt {PROMPT} --gen {N_NEW - 1} --schedule column --no-keep".split()
    named = ["--model", directory / "config.json", "--hardware", files / "slow-link.json"]
    assert call("plan", *named, *job, "-o", path)[0] == 0
    answer = generate(directory, "--plan", path)
    assert answer["token_ids"] == expected
    assert answer["memory"]["host_bytes"] > resident["host_bytes"]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (["--batch", "3"], "batch_size 3 and not 2"),
        (["--prompt", "21"], "prompt_tokens 21 and not 20"),
        (["--gen", "7"], "gen_tokens 7 and not 6"),
        (["--model", "deeper.json"], "n_layers 4 and not 3"),
    ],
)
def test_another_plan_is_refused_with_the_command_for_the_right_one(
    wrong, words, llama, call, generate, refused, files, tmp_path, monkeypatch
):
    monkeypatch.chdir(files)
    config = json.loads((llama / "config.json").read_text())
    (files / "deeper.json").write_text(json.dumps({**config, "num_hidden_layers": 4}))
    path = tmp_path / "plan.json"
    right = {"--model": llama / "config.json", "--batch": 2, "--prompt": 20, "--gen": 6}
    options = {**right, **dict([wrong])}
    job = [word for option in options.items() for word in option]
    assert call("plan", *job, "--hardware", "slow-link.json", "-o", path)[0] == 0
    sentence = refused(llama, "--plan", path)
    assert words in sentence
    command = shlex.split(sentence.partition("make the right one with: kvoverlap ")[2])
    assert call(*command)[0] == 0
    assert generate(llama, "--plan", command[-1])["decode"]["policy"] == "lp"


def test_a_dtype_that_the_plans_machine_was_not_profiled_in(llama, call, refused, files, tmp_path):
    path = tmp_path / "plan.json"
    job = f"--batch 2 --prompt {PROMPT} --gen {N_NEW - 1}".split()
    machine_file = files / "slow-link.json"
    model = llama / "config.json"
    assert call("plan", "--model", model, "--hardware", machine_file, *job, "-o", path)[0] == 0
    sentence = refused(llama, "--plan", path, "--dtype", "float16")
    assert "dtype float32 and not float16" in sentence
    assert "leave --dtype out" in sentence


def test_the_dtype_follows_the_machine_unless_it_is_chosen(llama, call, files, generate):
    half = ["--hardware", files / "half.json"]
    arguments = ["generate", "--weights", llama, "--device", "cpu", "--json"]
    arguments += ["--prompt-ids", files / "ids.json", "--max-new-tokens", 3, *half]
    assert json.loads(call(*arguments)[1])["dtype"] == "float16"
    assert json.loads(call(*arguments, "--dtype", "bfloat16")[1])["dtype"] == "bfloat16"
    assert generate(llama, "--dtype", "bfloat16", n_new=1)["dtype"] == "bfloat16"


def test_without_a_machine_the_device_is_profiled_first(llama, call, files, monkeypatch):
    shorten_profiles(monkeypatch)
    arguments = ["generate", "--weights", llama, "--device", "cpu", "--link", "0.2GB/s"]
    arguments += ["--prompt-ids", files / "ids.json", "--max-new-tokens", 3, "--json"]
    status, stdout, stderr = call(*arguments)
    answer = json.loads(stdout)
    assert status == 0
    assert "profile: pass 1 of 1" in stderr
    assert "--hardware FILE" in stderr
    assert answer["decode"]["hardware"] == "this-cpu"
    assert answer["decode"]["predicted_makespan_s"] > 0


@pytest.mark.parametrize("where", ["config.json", "generation_config.json"])
@pytest.mark.parametrize("as_list", [False, True], ids=["int", "list"])
def test_printed_tokens_end_where_the_model_ends_its_text(generate, tmp_path, where, as_list):
    theirs = seeded(CONFIGS["llama"]())
    directory = save(theirs, tmp_path)
    if where == "config.json":
        (directory / "generation_config.json").unlink()
    free = continued(theirs)
    end = next(token for token in free[0][2:] if token not in free[0][:2])
    eos = [end, 330] if as_list else end
    content = json.loads((directory / where).read_text())
    (directory / where).write_text(json.dumps({**content, "eos_token_id": eos}))
    answer = generate(directory)
    assert answer["token_ids"] == continued(theirs, eos=[end, 330] if as_list else [end])
    assert answer["token_ids"][0][-1] == end
    assert len(answer["token_ids"][0]) < N_NEW
    assert answer["decode"]["steps"] == N_NEW - 1


def test_text_goes_in_and_comes_out(llama, call, files, generate):
    made = add_tokenizer(llama)
    words = [f"w{token}" for token in PROMPTS[0, 1:].tolist()]
    ids = files / "first.json"
    ids.write_text(json.dumps([1, *PROMPTS[0, 1:].tolist()]))
    by_ids = generate(llama, ids=ids)
    by_text = generate(llama, "--prompt", " ".join(words), ids=None)
    assert by_text["token_ids"] == by_ids["token_ids"]
    assert by_text["prompt_tokens"] == PROMPT
    assert by_text["text"] == [made.decode(row) for row in by_text["token_ids"]]
    assert by_ids["text"] == by_text["text"]
    arguments = ["generate", "--weights", llama, "--device", "cpu", "--max-new-tokens", N_NEW]
    arguments += ["--hardware", files / "slow-link.json", "--prompt", " ".join(words)]
    assert call(*arguments)[1].startswith(by_text["text"][0])


def test_the_printed_answer_has_ids_times_and_memory(case, call, files):
    directory, expected = case
    arguments = ["generate", "--weights", directory, "--device", "cpu", "--max-new-tokens", N_NEW]
    arguments += ["--prompt-ids", files / "ids.json", "--hardware", files / "slow-link.json"]
    status, stdout, stderr = call(*arguments)
    assert status == 0
    lines = stdout.splitlines()
    assert lines[:2] == [f"[{number}] {row}" for number, row in enumerate(expected)]
    text = "\n".join(lines[2:])
    for pattern in (
        r"batch 2, prompt 20, 7 new tokens",
        r"prefill [\d.,]+ ms",
        r"decode [\d.,]+ tokens/s: 6 steps",
        r"[\d.]+ x max\(copy, compute\)",
        r"exposed copy [\d.]+ [mu]s, overlap [\d.]+ %",
        r"memory: device [\d.]+ MiB \(planned\)",
    ):
        assert re.search(pattern, text), (pattern, text)
    assert "loading model" in stderr


def test_help_shows_examples(call):
    status, stdout, _ = call("generate", "--help")
    assert status == 0
    assert "kvoverlap generate --weights" in stdout
