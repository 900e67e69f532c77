"""Decoding systems to compare on the same weights, prompts and steps.

`transformers` gets views of the same weights and the K and V of the same prompts. So nothing is
stored or prefilled twice, and its tokens must equal those of the resident decode.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from time import perf_counter
from typing import Any, Protocol

import torch
from torch import Tensor

from hw.backends import Backend
from hw.cache.host import HostCache
from hw.cache.reference import ResidentDecode
from hw.cache.verify import clear_margin
from hw.run.decode import DecodeExecutor
from sim.graph.jobs import Workload
from sim.lanes import COMPUTE, COPY_LANES
from sim.model.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class DecodeTime:
    """Duration of one decode of all steps.

    Args:
        seconds: from the first step to the end of the last.
        longest_lane_s: busy time of the busiest lane; None if lanes are not measured.
    """

    seconds: float
    longest_lane_s: float | None = None


@dataclass(frozen=True, slots=True)
class Agreement:
    """Whether the tokens of a decode equal those of the resident decode.

    Args:
        compared: number of tokens that had to agree: clear choices after equal earlier tokens.
    """

    equal: bool
    compared: int


class DecodingSystem(Protocol):
    """A system that decodes a job any number of times."""

    copied_bytes: int
    """Bytes over the links in one decode, both directions together."""

    def prepare(self) -> None:
        """Restore the cache's state after the prompt; not timed."""

    def decode(self) -> DecodeTime:
        """Decode every step greedily and return the time."""

    def check(self, reference: ResidentDecode) -> Agreement:
        """Compare the tokens of the last decode."""

    def release(self) -> None:
        """Free the memory that the next `prepare` allocates again, before other systems run."""

    def close(self) -> None:
        """Free all memory."""


class PlanSystem:
    """A kvoverlap plan; its time is the measured makespan of its graph."""

    def __init__(self, executor: DecodeExecutor) -> None:
        self.executor = executor
        self.copied_bytes = sum(
            task.bytes for task in executor.graph.tasks if task.lane in COPY_LANES
        )

    def prepare(self) -> None:
        """Nothing, because a run wipes what the previous one stored."""

    def decode(self) -> DecodeTime:
        timeline = self.executor.run()
        return DecodeTime(timeline.makespan_s, timeline.busiest_lane_s)

    def check(self, reference: ResidentDecode) -> Agreement:
        """Compare tokens, logits, K and V.

        Raises:
            WrongNumbers: as `DecodeExecutor.check`.
        """
        self.executor.check()
        return Agreement(True, int(_clear(reference, self.executor.graph.model).sum()))

    def release(self) -> None:
        """Nothing; the slots stay allocated."""

    def close(self) -> None:
        """Nothing; the slots are freed with the executor."""


class TransformersSystem:
    """`transformers` decoding greedily, with its cache on the device or offloaded.

    It leaves out the overhead of `generate`: masks, padding, and a device wait at every token.

    Args:
        built: from `transformers_model(weights)`.
        cache: source of the prompt's K and V.
        offloading: store the cache in host memory and copy each layer's to the device and back in
            every step. CUDA only.
    """

    def __init__(
        self,
        built: Any,
        model: ModelSpec,
        job: Workload,
        cache: HostCache,
        backend: Backend,
        offloading: bool,
    ) -> None:
        self.copied_bytes = offloaded_bytes(model, job) if offloading else 0
        self.tokens = torch.empty(0)
        self._built = built
        self._model = model
        self._job = job
        self._cache = cache
        self._backend = backend
        self._offloading = offloading
        self._past: Any = None
        self._stream: Any = None
        self._chosen: list[Tensor] = []

    @torch.inference_mode()
    def prepare(self) -> None:
        hf, device = import_module("transformers"), self._backend.device
        self._past = hf.DynamicCache(config=self._built.config, offloading=self._offloading)
        if self._offloading:
            # torch caches memory by stream, so all repeats use the first one's.
            self._stream = self._stream or self._past.prefetch_stream
            self._past.prefetch_stream = self._stream
        for number, kv in enumerate(self._cache.kv):
            prompt = kv[: self._job.prompt_tokens].to(device)
            keys, values = (
                prompt[:, :, part].permute(1, 2, 0, 3).contiguous()  # [B, H_kv, S, D]
                for part in (0, 1)
            )
            self._past.update(keys, values, number)
        self._chosen = [self._cache.next_tokens.to(device)[:, None]]

    def decode(self) -> DecodeTime:
        """Decode on a device that is idle before and after.

        CUDA uses the default stream, with which `transformers` synchronises its copies. The CPU
        uses the compute lane, whose one thread our own plans use too.
        """
        backend = self._backend
        if backend.kind == "cuda":
            backend.finish()
            begun_s = perf_counter()
            self._all_steps()
        else:
            backend.begin()
            begun_s = perf_counter()
            backend.launch(COMPUTE, self._all_steps)
        backend.finish()
        taken = DecodeTime(perf_counter() - begun_s)
        self.tokens = torch.cat(self._chosen[1:], dim=1).T.cpu()
        return taken

    def check(self, reference: ResidentDecode) -> Agreement:
        return same_choices(self.tokens, reference, self._model)

    def release(self) -> None:
        self._past = None

    def close(self) -> None:
        """Also free the pinned memory that torch caches for the next offloaded cache."""
        self.release()
        if self._offloading:
            self._backend.finish()
            torch._C._host_emptyCache()

    @torch.inference_mode()
    def _all_steps(self) -> None:
        for _ in range(self._job.gen_tokens):
            out = self._built(
                input_ids=self._chosen[-1],
                past_key_values=self._past,
                use_cache=True,
                logits_to_keep=1,
            )
            self._chosen.append(out.logits[:, -1].argmax(dim=-1, keepdim=True))


def offloaded_bytes(model: ModelSpec, job: Workload) -> int:
    """Bytes that an offloaded `DynamicCache` copies in one decode, both directions together.

    In every step each layer's past K and V are copied to the device, and back with the new token's.
    The first layer's are fetched during the last layer of the previous step, when they are already
    one token longer.
    """
    tokens = 0
    for step in range(job.gen_tokens):
        past = job.context_tokens(step)
        tokens += model.n_layers * past + 1
        tokens += model.n_layers * (past + 1)
    return tokens * job.batch_size * model.kv_token_bytes


def same_choices(tokens: Tensor, reference: ResidentDecode, model: ModelSpec) -> Agreement:
    """Compare the tokens of a decode that is fed its own: only a close choice may differ.

    Tokens of a sequence after its first difference do not count, since their inputs differ.

    Args:
        tokens: [steps, B].
    """
    clear = _clear(reference, model)
    differ = tokens != reference.tokens
    differed_before = differ.cumsum(dim=0) - differ.long() > 0
    must_agree = clear & ~differed_before
    return Agreement(not bool((differ & must_agree).any()), int(must_agree.sum()))


def _clear(reference: ResidentDecode, model: ModelSpec) -> Tensor:
    """Whether each choice is too clear for rounding to change, bool [steps, B]."""
    return reference.margins > clear_margin(model.dtype)
