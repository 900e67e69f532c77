"""A prefix in a file: what comes back is what was written, or it is reported and computed."""

from __future__ import annotations

import errno
import os
import time

import pytest
import torch
from run_restores import POLICIES, RestoreCase, policy_graphs, request
from tiny import LLAMA, OPT

from hw import CacheFile, lost_tokens, open_backend
from hw.backends.pacing import Transfer
from hw.model.chunk_prefill import ChunkPrefill
from hw.tiers.direct_io import ALIGNMENT, DIRECT, DROPPED, DirectReader, aligned_buffer
from hw.tiers.tiers import KV, X
from sim.errors import BadFile, Mismatch

FREE = Transfer(None)


@pytest.fixture
def cpu():
    with open_backend("cpu") as backend:
        yield backend


@pytest.fixture
def case(cpu):
    return RestoreCase.of(cpu, OPT, request(tier="ssd"))


@pytest.fixture
def path(case, tmp_path):
    """A cache file of the case."""
    case.file(tmp_path / "prefix.kv").__exit__()
    return tmp_path / "prefix.kv"


@pytest.mark.parametrize("kind", [KV, X])
@pytest.mark.parametrize("tokens", [(0, 4), (3, 9), (36, 41), (40, 41), (0, 41)])
def test_any_tokens_come_back_as_they_were(case, path, kind, tokens):
    held = case.reference.cache.kv if kind == KV else case.reference.cache.x
    with case.file(path) as file:
        layers = range(1, OPT.n_layers)
        slot = aligned_buffer(case.backend, file.slot_bytes(kind, len(layers), 41))
        pieces, lost = file.bring(kind, layers, *tokens, slot, FREE)
    assert lost == []
    for layer in layers:
        mine = torch.cat([one.rows for one in pieces if one.layer == layer])
        assert torch.equal(mine, held[layer][slice(*tokens)])


def cells_of(path, chunk: int) -> int:
    """Where the cells of a chunk begin in the file: K and V of 4 tokens fit one page."""
    n_chunks, pages = 11, OPT.n_layers
    region_bytes = n_chunks * pages * ALIGNMENT
    return path.stat().st_size - 2 * region_bytes + chunk * pages * ALIGNMENT


def damaged(path, how: str, chunk: int) -> str:
    content = bytearray(path.read_bytes())
    at = cells_of(path, chunk) + (OPT.n_layers - 1) * ALIGNMENT  # the last layer, which all load
    if how == "corrupt":
        content[at + 5] ^= 1
        path.write_bytes(content)
        return "its checksum differs"
    path.write_bytes(content[: at + 100])
    return "the file is truncated"


@pytest.mark.parametrize("how", ["corrupt", "truncated"])
@pytest.mark.parametrize("policy", [one for one in POLICIES if one != "compute-only"])
def test_what_a_damaged_file_has_lost_is_computed_and_the_result_is_right(
    case, path, policy, how, monkeypatch
):
    prefill = ChunkPrefill.run

    def slow(chunk, *tokens):  # so that the two ends leave the last tokens to the file
        time.sleep(0.02)
        prefill(chunk, *tokens)

    monkeypatch.setattr(ChunkPrefill, "run", slow)
    why = damaged(path, how, 9)
    graph = policy_graphs(OPT, case.job)[policy]
    with case.file(path) as file:
        executor = case.executor(graph, file)
        for _ in range(2):
            executor.run()
            assert executor.check()["tokens_equal"] is True
            report = lost_tokens(executor.recomputed)
            lost = {token for one in report for token in range(*one["tokens"])}
            assert set(range(36, 40)) <= lost
            assert {one["why"] for one in report} == {why}
            if how == "corrupt" and policy in ("load-only", "two-ended", "lp"):
                assert report == [{"tokens": [36, 40], "layers": [2], "why": why}]


def test_lost_attention_inputs_are_computed_too(case, path):
    content = bytearray(path.read_bytes())
    content[-1 - 2 * ALIGNMENT * OPT.n_layers] ^= 1  # padding of the last layer's chunk 8
    content[-2 * ALIGNMENT * OPT.n_layers - ALIGNMENT + 8] ^= 1
    path.write_bytes(content)
    with case.file(path) as file:
        executor = case.executor(policy_graphs(OPT, case.job)["layer-wise"], file)
        executor.run()
    executor.check()


def test_a_file_of_another_prompt_model_or_chunk_is_refused(cpu, case, path):
    for job, model, word in (
        (case.job, LLAMA, "model"),
        (request(tier="ssd", cached=40), OPT, "tokens_xxh3"),
        (request(tier="ssd", io_chunk_tokens=8), OPT, "chunk_tokens"),
    ):
        other = RestoreCase.of(cpu, model, job)
        with pytest.raises(Mismatch, match=f"its {word} is"):
            other.file(path)


@pytest.mark.parametrize(
    "content", [b"", b"text", b"kvoverlap-prefix 1 9999999999\n", b"kvoverlap-prefix 1 20\n{}"]
)
def test_a_file_without_our_header_is_refused_in_one_sentence(case, path, content):
    path.write_bytes(content)
    with pytest.raises(BadFile, match=r"prefix\.kv"):
        case.file(path)
    with pytest.raises(BadFile, match="no readable header"):
        CacheFile(path.parent / "nothing.kv", case.key, OPT)


def test_a_file_that_cannot_be_written_says_so(case, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadFile, match="cannot write"):
        case.file(tmp_path / "file" / "prefix.kv")


def test_where_direct_reads_are_refused_the_page_cache_is_dropped(case, path, monkeypatch):
    really_open = os.open

    def refuse(name, flags, *more, **others):
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return really_open(name, flags, *more, **others)

    monkeypatch.setattr(os, "open", refuse)
    with case.file(path) as file:
        executor = case.executor(policy_graphs(OPT, case.job)["load-only"], file)
        executor.run()
        assert file.how.startswith(DROPPED)
    assert executor.check()["tokens_equal"] is True


def test_a_reader_says_how_it_reads_and_where_the_file_ends(cpu, tmp_path):
    (tmp_path / "some").write_bytes(bytes(range(256)) * 48)
    with DirectReader(tmp_path / "some") as reader:
        assert reader.mode in (DIRECT, DROPPED)
        into = aligned_buffer(cpu, 2 * ALIGNMENT)
        assert reader.read(ALIGNMENT, into) == 2 * ALIGNMENT
        assert bytes(into.numpy()[:256]) == bytes(range(256))
        assert reader.read(2 * ALIGNMENT, into) == ALIGNMENT
        assert reader.read(3 * ALIGNMENT, into) == 0
    with pytest.raises(BadFile, match="cannot be read"):
        DirectReader(tmp_path / "none")
