"""`transformers` decodes on our weights and our prompts' K and V."""

from __future__ import annotations

from dataclasses import replace

import hf
import pytest
import torch
from tiny import CPU, JOB, LLAMA, MODELS, OPT, QWEN2, filled_cache

import hw.model.transformers_model
from hw import open_backend, random_weights, resident_decode
from hw.cache.reference import ResidentDecode
from hw.model.transformers_model import transformers_model, transformers_problem
from hw.run.other_systems import Agreement, TransformersSystem, offloaded_bytes, same_choices
from sim.errors import Mismatch

MISTRAL = replace(LLAMA, name="tiny-mistral", family="mistral", rope_scaling=None, head_dim=16)


@pytest.fixture
def cpu():
    with open_backend("cpu") as backend:
        yield backend


def peer_of(backend, model=OPT, offloading=False):
    """A peer on random weights, its host cache, and what it must decode."""
    weights = random_weights(model, 0, CPU)
    cache = filled_cache(weights, JOB, backend)
    built = transformers_model(weights)
    peer = TransformersSystem(built, model, JOB, cache, backend, offloading)
    return peer, cache, resident_decode(weights, cache, JOB)


@pytest.mark.parametrize("model", [*MODELS, MISTRAL], ids=lambda model: model.name)
def test_the_model_of_transformers_has_no_weights_of_its_own(model):
    weights = random_weights(model, 0, CPU)
    built = transformers_model(weights)
    theirs = dict(built.named_parameters())
    ours = [
        weights.embed,
        weights.head,
        *([] if weights.positions is None else [weights.positions]),
        *(layer.attention.qkv.weight for layer in weights.layers),
    ]
    pointers = {parameter.untyped_storage().data_ptr() for parameter in theirs.values()}
    assert {tensor.untyped_storage().data_ptr() for tensor in ours} <= pointers
    assert not any(tensor.is_meta for tensor in [*theirs.values(), *built.buffers()])
    values = next(
        theirs[name] for name in theirs if name.endswith("layers.1.self_attn.v_proj.weight")
    )
    rows = weights.layers[1].attention.qkv.weight[model.q_size + model.kv_size :]
    assert values.data_ptr() == rows.data_ptr()
    assert built.lm_head.weight.data_ptr() == weights.head.data_ptr()
    n_elements = sum(tensor.numel() for name, tensor in theirs.items() if "lm_head" not in name)
    assert n_elements >= (model.weight_bytes - weights.head.nbytes) // model.element_bytes


@pytest.mark.parametrize("model", [*MODELS, MISTRAL], ids=lambda model: model.name)
def test_transformers_decodes_our_tokens_again_and_again(cpu, model):
    peer, cache, reference = peer_of(cpu, model)
    prompts = [kv[: JOB.prompt_tokens].clone() for kv in cache.kv]
    for _ in range(3):
        peer.prepare()
        assert peer.decode().seconds > 0
        assert peer.tokens.equal(reference.tokens)
        assert peer.check(reference) == Agreement(True, JOB.gen_tokens * JOB.batch_size)
        peer.release()
    for kept, kv in zip(prompts, cache.kv, strict=True):
        assert kv[: JOB.prompt_tokens].equal(kept)


@pytest.fixture
def two_threads():
    """The number of threads that torch gives new threads of this process."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_transformers_computes_on_the_one_thread_that_our_plans_have(monkeypatch):
    with open_backend("cpu") as cpu:
        peer, _, _ = peer_of(cpu)
        seen = []
        monkeypatch.setattr(peer, "_all_steps", lambda: seen.append(torch.get_num_threads()))
        peer.prepare()
        peer._chosen = [torch.zeros(2, 1)] * 2
        peer.decode()
    assert seen == [1]


def test_an_architecture_that_transformers_builds_otherwise_is_refused():
    model = replace(QWEN2, out_bias=True)
    with pytest.raises(Mismatch, match=r"tiny-qwen2.*o_proj\.bias"):
        transformers_model(random_weights(model, 0, CPU))


class Stream:
    """A stream of a machine that has none: everything happens at once."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def wait_stream(self, _):
        return None


@pytest.mark.parametrize("model", [OPT, LLAMA], ids=lambda model: model.name)
def test_the_offloaded_cache_copies_the_bytes_that_are_reported(cpu, model, monkeypatch):
    """The library's own code decides what moves; only streams and copies are stand-ins."""
    peer, _, reference = peer_of(cpu, model, offloading=True)
    moved: list[int] = []
    away: set[int] = set()

    def offload(layer):
        moved.append(layer.keys.nbytes + layer.values.nbytes)
        away.add(id(layer))

    def prefetch(layer):
        if id(layer) in away:
            moved.append(layer.keys.nbytes + layer.values.nbytes)
            away.remove(id(layer))

    monkeypatch.setattr(torch, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "default_stream", lambda _: Stream())
    monkeypatch.setattr(hf.cache_utils.DynamicLayer, "offload", offload)
    monkeypatch.setattr(hf.cache_utils.DynamicLayer, "prefetch", prefetch)
    streams = set()
    for _ in range(2):
        away.clear()
        peer.prepare()
        moved.clear()
        peer.decode()
        assert peer.check(reference).equal
        assert sum(moved) == peer.copied_bytes == offloaded_bytes(model, JOB)
        streams.add(peer._past.prefetch_stream)
        peer.release()
    assert len(streams) == 1


def reference_with(margins):
    tokens = torch.tensor([[1, 5], [2, 6], [3, 7]])
    return ResidentDecode(tokens, torch.tensor(margins), torch.empty(0), [], {})


CLEAR = [[0.5, 0.5], [0.5, 0.5], [0.5, 0.5]]
CLOSE_AT_SECOND = [[0.5, 0.5], [0.001, 0.5], [0.5, 0.5]]


@pytest.mark.parametrize(
    ("margins", "tokens", "dtype", "expected"),
    [
        (CLEAR, [[1, 5], [2, 6], [3, 7]], "float16", (True, 6)),
        (CLEAR, [[1, 5], [2, 6], [3, 9]], "float16", (False, 6)),
        # The first sequence turns over where the choice was close; what follows does not count.
        (CLOSE_AT_SECOND, [[1, 5], [9, 6], [9, 7]], "float16", (True, 4)),
        # It agrees there: what follows counts.
        (CLOSE_AT_SECOND, [[1, 5], [2, 6], [9, 7]], "float16", (False, 5)),
        # Its first difference is at a clear choice.
        (CLOSE_AT_SECOND, [[9, 5], [2, 6], [3, 7]], "float16", (False, 4)),
        # In 32 bit every choice is clear.
        (CLOSE_AT_SECOND, [[1, 5], [9, 6], [3, 7]], "float32", (False, 5)),
    ],
)
def test_only_a_close_choice_may_turn_over(margins, tokens, dtype, expected):
    found = same_choices(torch.tensor(tokens), reference_with(margins), replace(OPT, dtype=dtype))
    assert found == Agreement(*expected)


def test_an_old_transformers_is_not_run(monkeypatch):
    monkeypatch.setattr(hw.model.transformers_model, "version", lambda _: "4.57.1")
    assert "4.57.1 is too old" in transformers_problem()
