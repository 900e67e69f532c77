"""Checkpoints as `transformers` writes them load equal; anything else is refused in a sentence."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import hf
import pytest
import torch
from checkpoints import CONFIGS, save, seeded
from safetensors.torch import load_file, save_file
from test_weights import tensors_of

from hw import open_backend, weights_from_tensors
from hw.backends.base import Memory
from hw.backends.cuda import cuda_available
from hw.model.checkpoint import Checkpoint
from hw.model.weights import TORCH_DTYPE
from sim.errors import BadFile, DoesNotFit, Mismatch

Q_PROJ = "model.layers.1.self_attn.q_proj.weight"
EMBED = "model.embed_tokens.weight"
needs_cuda = pytest.mark.skipif(not cuda_available(), reason="torch sees no CUDA device")
MEMORY_FILES = Path("/proc/self/clear_refs"), Path("/proc/self/status")


@pytest.fixture(scope="module")
def cpu():
    with open_backend("cpu") as backend:
        yield backend


@pytest.fixture
def llama(tmp_path):
    """A whole checkpoint in one file, to be spoilt."""
    return save(seeded(CONFIGS["llama"]()), tmp_path / "llama")


@pytest.fixture
def shards(tmp_path):
    return save(seeded(CONFIGS["llama"]()), tmp_path / "shards", sharded=True)


def edit_json(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def edit_tensors(directory, change):
    path = directory / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    change(tensors)
    save_file(tensors, path)


def sentence(error: pytest.ExceptionInfo) -> str:
    """The message, which is one sentence in one line."""
    text = str(error.value)
    assert "\n" not in text
    assert text.endswith((".", "'"))
    return text


@pytest.mark.parametrize("sharded", [False, True], ids=["one-file", "sharded"])
@pytest.mark.parametrize("case", CONFIGS)
def test_every_family_loads_equal(case, sharded, tmp_path, cpu):
    theirs = seeded(CONFIGS[case]())
    save(theirs, tmp_path, sharded)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1 or not sharded
    checkpoint = Checkpoint.open(tmp_path)
    mine = checkpoint.load(checkpoint.model, cpu)
    expected = weights_from_tensors(checkpoint.model, theirs.state_dict(), cpu.device)
    pairs = list(zip(tensors_of(mine), tensors_of(expected), strict=True))
    assert all(a.equal(b) and a.dtype == b.dtype for a, b in pairs)
    assert mine.head.equal(theirs.lm_head.weight)
    assert (mine.head.data_ptr() == mine.embed.data_ptr()) == checkpoint.model.tie_embeddings
    assert mine.model.name == tmp_path.name


@pytest.mark.parametrize("stored", TORCH_DTYPE)
@pytest.mark.parametrize("computed", TORCH_DTYPE)
def test_every_dtype_is_read_as_stored_and_computed_as_asked(stored, computed, tmp_path, cpu):
    theirs = seeded(CONFIGS["qwen2"]()).to(TORCH_DTYPE[stored])
    checkpoint = Checkpoint.open(save(theirs, tmp_path))
    assert checkpoint.model.dtype == stored
    mine = checkpoint.load(replace(checkpoint.model, dtype=computed), cpu)
    assert {tensor.dtype for tensor in tensors_of(mine)} == {TORCH_DTYPE[computed]}
    assert mine.embed.equal(theirs.model.embed_tokens.weight.to(TORCH_DTYPE[computed]))


@pytest.mark.parametrize("case", ["opt", "llama-tied"])
def test_files_of_a_model_without_a_head_load_too(case, tmp_path, cpu):
    """`AutoModel` writes `decoder.layers...` and `layers...` without the prefix `model.`."""
    whole = seeded(CONFIGS[case]())
    whole.model.save_pretrained(tmp_path)
    checkpoint = Checkpoint.open(tmp_path)
    assert not any(name.startswith("model.") for name in checkpoint.tensors)
    expected = weights_from_tensors(checkpoint.model, whole.state_dict(), cpu.device)
    mine = checkpoint.load(checkpoint.model, cpu)
    assert all(a.equal(b) for a, b in zip(tensors_of(mine), tensors_of(expected), strict=True))


def test_progress_names_the_files_and_ends_near_one(shards, cpu):
    told = []
    checkpoint = Checkpoint.open(shards)
    checkpoint.load(checkpoint.model, cpu, lambda *words: told.append(words))
    assert {text.removeprefix("loading ") for text, _ in told} == {
        path.name for path in shards.glob("*.safetensors")
    }
    assert [done for _, done in told] == sorted(done for _, done in told)
    assert 0.9 < told[-1][1] < 1.0


@pytest.mark.skipif(not all(map(Path.exists, MEMORY_FILES)), reason="needs Linux' /proc")
def test_memory_peaks_at_the_weights_and_about_one_tensor(tmp_path, cpu):
    sizes = {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8}
    config = {**CONFIGS["llama"]().to_dict(), **sizes, "head_dim": 64, "num_hidden_layers": 8}
    with torch.device("meta"):
        shape = hf.AutoModelForCausalLM.from_config(hf.LlamaConfig(**config))
    tensors = {name: torch.ones(like.shape) for name, like in shape.state_dict().items()}
    save_file(tensors, tmp_path / "model.safetensors")
    largest = max(tensor.nbytes for tensor in tensors.values())
    shape.config.save_pretrained(tmp_path)
    del tensors
    checkpoint = Checkpoint.open(tmp_path)
    clear, status = MEMORY_FILES

    def resident(which: str) -> int:
        (line,) = (line for line in status.read_text().splitlines() if line.startswith(which))
        return int(line.split()[1]) * 1024

    before = resident("VmRSS")
    clear.write_text("5")
    weights = checkpoint.load(checkpoint.model, cpu)
    grown = resident("VmHWM") - before
    assert weights.model.weight_bytes > 100e6
    assert grown < weights.model.weight_bytes + 3 * largest


def test_weights_beyond_the_device_do_not_fit(llama, cpu, monkeypatch):
    checkpoint = Checkpoint.open(llama)
    monkeypatch.setattr(cpu, "memory", lambda: Memory(1000, 10**12))
    monkeypatch.setattr(Checkpoint, "find", lambda *_: pytest.fail("read before it was checked"))
    with pytest.raises(DoesNotFit) as error:
        checkpoint.load(checkpoint.model, cpu)
    assert "smaller model or --dtype" in sentence(error)


@pytest.mark.parametrize(
    "failure",
    [
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
    ids=["python", "torch"],
)
def test_memory_that_runs_out_at_work_is_a_sentence(failure):
    def work():
        raise failure

    def run_it():
        with open_backend("cpu") as backend:
            backend.begin()
            backend.launch("compute", work)
            backend.finish()

    with pytest.raises(DoesNotFit) as error:
        run_it()
    assert "lower --batch or --prompt" in sentence(error)


def test_other_failures_at_work_stay_what_they_are():
    with pytest.raises(RuntimeError, match="something else"), open_backend("cpu"):
        raise RuntimeError("something else")


def test_an_allocation_no_machine_has_room_for_is_a_sentence():
    with pytest.raises(DoesNotFit), open_backend("cpu") as backend:
        backend.host_empty((2**50,), torch.float32)


@pytest.mark.gpu
@needs_cuda
def test_a_gpu_loads_equal(llama):
    checkpoint = Checkpoint.open(llama)
    with open_backend("cuda") as backend:
        mine = checkpoint.load(checkpoint.model, backend)
        assert mine.embed.cpu().equal(load_file(llama / "model.safetensors")[EMBED])


@pytest.mark.gpu
@needs_cuda
def test_a_gpu_out_of_memory_is_a_sentence():
    with pytest.raises(DoesNotFit) as error, open_backend("cuda") as backend:
        backend.device_empty((2**50,), torch.float32)
    assert "this GPU of" in sentence(error)


class Refused:
    """Each test spoils one thing; opening must say so before a weight is read."""

    def refused(self, directory: Path, kind: type[Exception]) -> str:
        with pytest.raises(kind) as error:
            Checkpoint.open(directory)
        return sentence(error)


class TestBadDirectories(Refused):
    def test_missing(self, tmp_path):
        assert "not a directory" in self.refused(tmp_path / "nowhere", BadFile)

    def test_a_file(self, llama):
        assert "not a directory" in self.refused(llama / "config.json", BadFile)

    def test_without_a_config(self, llama):
        (llama / "config.json").unlink()
        assert "holds no config.json" in self.refused(llama, BadFile)

    def test_without_weights(self, llama):
        (llama / "model.safetensors").unlink()
        assert "holds neither model.safetensors nor" in self.refused(llama, BadFile)

    @pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
    def test_only_pickles(self, llama, name):
        (llama / "model.safetensors").rename(llama / name)
        text = self.refused(llama, BadFile)
        assert name in text
        assert "only safetensors" in text
        assert "save_pretrained" in text

    def test_post_norm_opt(self, tmp_path):
        config = hf.OPTConfig(**CONFIGS["opt"]().to_diff_dict() | {"do_layer_norm_before": False})
        config.save_pretrained(tmp_path)
        assert "post-norm OPT" in self.refused(tmp_path, BadFile)


class TestBadFiles(Refused):
    def test_missing_shard(self, shards):
        lost = sorted(shards.glob("*.safetensors"))[1]
        lost.unlink()
        assert lost.name in self.refused(shards, BadFile)

    def test_shard_outside_the_directory(self, shards):
        def lead_out(content):
            content["weight_map"]["lm_head.weight"] = "../llama/model.safetensors"

        edit_json(shards / "model.safetensors.index.json", lead_out)
        assert "missing in its folder" in self.refused(shards, BadFile)

    def test_index_naming_a_tensor_that_its_shard_lacks(self, shards):
        def misplace(content):
            content["weight_map"]["lm_head.weight"] = content["weight_map"][Q_PROJ]

        edit_json(shards / "model.safetensors.index.json", misplace)
        text = self.refused(shards, BadFile)
        assert "'lm_head.weight'" in text
        assert "does not hold it" in text

    def test_index_without_a_map(self, shards):
        (shards / "model.safetensors.index.json").write_text("[]")
        assert "no weight_map" in self.refused(shards, BadFile)

    @pytest.mark.parametrize("kept", [0, 5, 300, 100_000])
    def test_truncated(self, llama, kept):
        path = llama / "model.safetensors"
        path.write_bytes(path.read_bytes()[:kept])
        assert "not a whole safetensors file" in self.refused(llama, BadFile)

    def test_something_else_under_the_name(self, llama):
        (llama / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
        assert "not a whole safetensors file" in self.refused(llama, BadFile)

    @pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float64])
    def test_dtype(self, llama, dtype):
        edit_tensors(llama, lambda tensors: tensors.update({Q_PROJ: tensors[Q_PROJ].to(dtype)}))
        text = self.refused(llama, BadFile)
        assert Q_PROJ in text
        assert "float32, float16, bfloat16, FP8 or MXFP4" in text


class TestDisagreement(Refused):
    def test_missing_tensor(self, llama):
        edit_tensors(llama, lambda tensors: tensors.pop(Q_PROJ))
        assert f"no tensor '{Q_PROJ}'" in self.refused(llama, Mismatch)

    def test_head_that_is_not_tied_and_not_there(self, llama):
        edit_tensors(llama, lambda tensors: tensors.pop("lm_head.weight"))
        assert "no tensor 'lm_head.weight'" in self.refused(llama, Mismatch)

    def test_another_shape(self, llama):
        edit_json(llama / "config.json", lambda config: config.update(num_key_value_heads=4))
        text = self.refused(llama, Mismatch)
        assert "(16, 64)" in text
        assert "(32, 64)" in text

    def test_fewer_layers_than_the_files_hold(self, llama):
        edit_json(llama / "config.json", lambda config: config.update(num_hidden_layers=2))
        assert "no place for, such as 'model.layers.2." in self.refused(llama, Mismatch)

    def test_biases_that_the_config_does_not_have(self, llama):
        name = Q_PROJ.replace("weight", "bias")
        edit_tensors(llama, lambda tensors: tensors.update({name: torch.zeros(64)}))
        assert name in self.refused(llama, Mismatch)

    def test_a_file_that_lost_a_tensor_after_it_was_opened(self, llama, cpu):
        checkpoint = Checkpoint.open(llama)
        edit_tensors(llama, lambda tensors: tensors.pop(Q_PROJ))
        with pytest.raises(BadFile) as error:
            checkpoint.load(checkpoint.model, cpu)
        assert "model.safetensors" in sentence(error)
