"""Other people's ways of decoding beside ours, on the same weights, prompts and steps.

`transformers` gets views of our weights and our prompts' K and V, so that nothing is held twice,
nothing is prefilled twice, and its tokens must be those of our resident decode.
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
from hw.cache.verify import TOLERANCE
from hw.model.transformers_model import transformers_model, transformers_problem
from hw.run.decode import DecodeExecutor
from sim.graph.jobs import Workload
from sim.lanes import COMPUTE, COPY_LANES
from sim.model.spec import ModelSpec

__all__ = [
    "Agreement",
    "Decode",
    "Peer",
    "PlanPeer",
    "TransformersPeer",
    "offloaded_bytes",
    "same_choices",
    "transformers_model",
    "transformers_problem",
]


@dataclass(frozen=True, slots=True)
class Decode:
    """How long one decode of all steps took.

    Args:
        seconds: from the first step to the end of the last.
        longest_lane_s: time that the busiest lane worked; None where lanes are not seen.
    """

    seconds: float
    longest_lane_s: float | None = None


@dataclass(frozen=True, slots=True)
class Agreement:
    """Whether a decode chose the tokens of the resident decode.

    Args:
        compared: choices that had to agree: the clear ones that both made after equal tokens.
    """

    equal: bool
    compared: int


class Peer(Protocol):
    """One way of decoding a job, to be run any number of times."""

    copied_bytes: int
    """Over the links in one decode, both directions together."""

    def prepare(self) -> None:
        """Put the cache into its state after the prompt; not timed."""

    def decode(self) -> Decode:
        """Decode every step greedily."""

    def check(self, reference: ResidentDecode) -> Agreement:
        """Compare what the last decode chose."""

    def release(self) -> None:
        """Give back what the next `prepare` makes anew; others run now."""

    def close(self) -> None:
        """Give back everything; nothing follows."""


class PlanPeer:
    """One of our own plans; its time is the measured makespan of its graph."""

    def __init__(self, executor: DecodeExecutor) -> None:
        self.executor = executor
        self.copied_bytes = sum(
            task.bytes for task in executor.graph.tasks if task.lane in COPY_LANES
        )

    def prepare(self) -> None:
        """Nothing: a run wipes what the one before stored behind the prompt."""

    def decode(self) -> Decode:
        timeline = self.executor.run()
        return Decode(timeline.makespan_s, timeline.busiest_lane_s)

    def check(self, reference: ResidentDecode) -> Agreement:
        """Compare tokens, logits, K and V.

        Raises:
            WrongNumbers: as `DecodeExecutor.check`.
        """
        self.executor.check()
        return Agreement(True, int(_clear(reference, self.executor.graph.model).sum()))

    def release(self) -> None:
        """Nothing: the slots stay."""

    def close(self) -> None:
        """Nothing: the slots go with the executor."""


class TransformersPeer:
    """`transformers` decoding greedily, with its cache on the device or offloaded.

    It is spared what `generate` adds: masks, padding, and a wait for the device at every token.

    Args:
        built: from `transformers_model(weights)`.
        cache: whose K and V of the prompt it starts from.
        offloading: keep the cache in host memory; each layer's is then copied to the device and
            back in every step. CUDA only.
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
            # Memory that torch keeps for one stream serves no other: all repeats share the first's.
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

    def decode(self) -> Decode:
        """Decode on the device, which is idle before and after.

        On CUDA that is the default stream, with which `transformers` synchronises its copies; on
        the CPU it is the compute lane, whose one thread our own plans have too.
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
        taken = Decode(perf_counter() - begun_s)
        self.tokens = torch.cat(self._chosen[1:], dim=1).T.cpu()
        return taken

    def check(self, reference: ResidentDecode) -> Agreement:
        return same_choices(self.tokens, reference, self._model)

    def release(self) -> None:
        self._past = None

    def close(self) -> None:
        """Also return the pinned memory that torch keeps for the next offloaded cache."""
        self.release()
        if self._offloading:
            self._backend.finish()
            torch._C._host_emptyCache()

    @torch.inference_mode()
    def _all_steps(self) -> None:
        for _ in range(self._job.gen_tokens):
            answer = self._built(
                input_ids=self._chosen[-1],
                past_key_values=self._past,
                use_cache=True,
                logits_to_keep=1,
            )
            self._chosen.append(answer.logits[:, -1].argmax(dim=-1, keepdim=True))


def offloaded_bytes(model: ModelSpec, job: Workload) -> int:
    """Bytes that an offloaded `DynamicCache` copies in one decode, both directions together.

    In every step each layer's K and V of the past come to the device, and go back with the new
    token's. The first layer's are fetched during the last layer of the step before, when they
    are one token longer already.
    """
    tokens = 0
    for step in range(job.gen_tokens):
        past = job.context_tokens(step)
        tokens += model.n_layers * past + 1
        tokens += model.n_layers * (past + 1)
    return tokens * job.batch_size * model.kv_token_bytes


def same_choices(tokens: Tensor, reference: ResidentDecode, model: ModelSpec) -> Agreement:
    """Compare tokens of a decode that fed on its own: only a close choice may turn over.

    What a sequence chose after its first difference does not count, since it then decoded
    something else.

    Args:
        tokens: [steps, B].
    """
    clear = _clear(reference, model)
    differ = tokens != reference.tokens
    differed_before = differ.cumsum(dim=0) - differ.long() > 0
    must_agree = clear & ~differed_before
    return Agreement(not bool((differ & must_agree).any()), int(must_agree.sum()))


def _clear(reference: ResidentDecode, model: ModelSpec) -> Tensor:
    """Choices that rounding cannot turn over, [steps, B]."""
    limit = 0.0 if model.dtype == "float32" else TOLERANCE[model.dtype]
    return reference.margins > limit
