"""What `kvoverlap generate` refuses ends in one sentence on stderr and exit status 2."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from builders import machine
from checkpoints import CONFIGS, add_tokenizer, save, seeded
from tokenizers import processors

from kvoverlap.cli.main import main

N_NEW = 7


@pytest.fixture
def llama(tmp_path):
    return save(seeded(CONFIGS["llama"]()), tmp_path / "llama")


@pytest.fixture
def files(tmp_path):
    """A machine and the ids of two prompts."""
    folder = tmp_path / "files"
    machine(dtype="float32").save(folder / "machine.json")
    write(folder / "ids.json", [[5, 6, 7, 8] * 5, [9, 10, 11, 12] * 5])
    return folder


@pytest.fixture
def refused(capsys, files):
    """A `generate` that must be refused; returns its sentence."""

    def run(directory, *more, n_new=N_NEW, ids=files / "ids.json", device="cpu"):
        arguments = ["generate", "--weights", directory, "--device", device, *more]
        arguments += [] if ids is None else ["--prompt-ids", ids]
        status = main([str(word) for word in (*arguments, "--max-new-tokens", n_new)])
        captured = capsys.readouterr()
        assert (status, captured.out) == (2, "")
        assert "Traceback" not in captured.err
        (line,) = (line for line in captured.err.splitlines() if line.startswith("error: "))
        return line

    return run


def write(path, content):
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([], "none of them empty"),
        ([[]], "none of them empty"),
        ({"ids": [1]}, "JSON list of token ids"),
        ([1.5, 2], "JSON list of token ids"),
        ([True], "JSON list of token ids"),
        ([[1, 2], [3]], "from 1 to 2 ids"),
        ([1, 331], "id 331 must be from 0 to 330"),
        ([[1, 2], [3, -1]], "prompt 1: id -1"),
        ([1] * 122, "128 positions"),
    ],
)
def test_prompt_ids_that_are_none(llama, refused, tmp_path, content, words):
    assert words in refused(llama, ids=write(tmp_path / "bad.json", content))


def test_prompt_files_that_are_none(llama, refused, tmp_path):
    (tmp_path / "text").write_text("Once upon")
    assert "not valid JSON" in refused(llama, ids=tmp_path / "text")
    assert "does not exist" in refused(llama, ids=tmp_path / "nowhere")


def test_text_without_a_tokenizer(llama, refused):
    sentence = refused(llama, "--prompt", "The sea", ids=None)
    assert "tokenizer.json" in sentence
    assert "--prompt-ids" in sentence


def test_text_without_a_token(llama, refused):
    made = add_tokenizer(llama)
    made.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    made.save(str(llama / "tokenizer.json"))
    assert "holds no token" in refused(llama, "--prompt", "  ", ids=None)


def test_a_tokenizer_file_that_is_none(llama, refused):
    (llama / "tokenizer.json").write_text("{}")
    assert "not a tokenizer" in refused(llama)


def test_an_end_of_text_that_is_no_token(llama, refused):
    write(llama / "generation_config.json", {"eos_token_id": "</s>"})
    assert "eos_token_id(='</s>')" in refused(llama)


def test_options_that_contradict_each_other(llama, refused, tmp_path):
    assert "either --prompt" in refused(llama, ids=None)
    assert "either --prompt" in refused(llama, "--prompt", "The sea")
    assert "leave --policy out" in refused(llama, "--plan", "plan.json", "--policy", "lp")
    assert "leave --hardware out" in refused(llama, "--plan", "plan.json", "--hardware", "x")
    assert "leave --plan out" in refused(llama, "--plan", "plan.json", n_new=1)
    assert "at least 2" in refused(llama, "-o", tmp_path / "measured.json", n_new=1)
    assert "--warm-ups(=-1)" in refused(llama, "--warm-ups", -1)
    assert "--max-new-tokens(=0)" in refused(llama, n_new=0)
    assert "--dtype(=int8)" in refused(llama, "--dtype", "int8")


def test_a_name_of_nothing(llama, refused, files, tmp_path):
    assert "does not exist" in refused(llama, "--plan", tmp_path / "plan.json")
    hardware = "--hardware", files / "machine.json"
    assert "policy 'lpp' is unknown" in refused(llama, *hardware, "--policy", "lpp")
    assert "hardware 'a101' is unknown" in refused(llama, "--hardware", "a101")
    assert "not a directory" in refused(tmp_path / "weights")
    assert "device 'tpu'" in refused(llama, *hardware, device="tpu")


def test_a_checkpoint_that_is_none(llama, refused):
    (llama / "model.safetensors").rename(llama / "pytorch_model.bin")
    assert "only safetensors" in refused(llama)


def test_weights_beyond_the_memory_of_the_machine(llama, refused, tmp_path):
    small = replace(machine(dtype="float32").memory, device_bytes=1e5)
    machine(dtype="float32", memory=small).save(tmp_path / "small.json")
    sentence = refused(llama, "--hardware", tmp_path / "small.json")
    assert "choose a smaller model or dtype" in sentence
