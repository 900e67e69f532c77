"""Changes of a refused question that lead to an answer, each tried before it is offered.

A decode is tried with one step over as many tokens, which needs the same memory and is planned
fast. A restore is tried by its memory and by one policy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from time import monotonic
from typing import Any

from dashboard.questions.decode import ROW, Changes, Question
from dashboard.questions.offered import (
    FIRST_N_BATCHES,
    GPUS,
    MAX_TASKS,
    PROMPTS,
    RESTORE_PROMPTS,
    STEPS,
)
from dashboard.questions.restore import RestoreQuestion
from dashboard.questions.traffic import (
    CHAT,
    EXAMPLES,
    GENERATED_FILE,
    Requests,
    TrafficQuestion,
    size_list,
)
from sim.catalog import find_hardware, find_model
from sim.errors import KvOverlapError
from sim.graph.jobs import UNCOMPRESSED
from sim.progress import Progress

MAX_REMEDIES = 3
ENOUGH_S, LIMIT_S = 3.0, 12.0
"""Seconds after which no more changes are tried: with some found, and with none."""

SAFE_MODEL, SAFE_MACHINE = "opt-6.7b", "kvpr-a100"
"""The last remedy sets them."""

ROOMY_MACHINE = "b300+pcie6-x16"
"""The last but one: a few of its GPUs hold any shipped model."""

UNCHANGED = {"link": 1.0, "flops": 1.0, "hbm": 1.0, "both_ways": None, "memory": None, "gpus": 1}
"""Controls of a machine as profiled."""

FEW_SIZES, FEW_REQUESTS = 3, 400
SAFE_SIZES = (0.0, 16e9, 64e9)

LP = "lp"


@dataclass(frozen=True, slots=True)
class Remedy:
    """A change that leads to an answer.

    Args:
        label: of its button.
        settings: values of controls, by their keys.
    """

    label: str
    settings: dict[str, Any]


NO_RUNTIME = Remedy("No runtime", {"runtime": None})


@dataclass(frozen=True)
class Asking:
    """A question, the policy asked, and the changes that led to it.

    Args:
        question: a `Question`, a `RestoreQuestion` or a `TrafficQuestion`.
        schedules: whether the page offers a schedule.
        max_tasks: largest question that is planned.
        quick: no plan that chooses what stays in GPU memory in the column schedule, which may take
            minutes.
    """

    question: Any
    policy: str
    schedules: bool = True
    max_tasks: int = MAX_TASKS
    quick: bool = False
    labels: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Text that is equal for equal questions."""
        asked = f"{self.policy} {self.schedules} {self.max_tasks} {self.quick}"
        return f"{asked} {self.question.key}"

    def to(self, label: str, question: Any, **settings: Any) -> Asking:
        """With one more change."""
        return replace(
            self,
            question=question,
            policy=settings.get("policy", self.policy),
            labels=(*self.labels, label),
            settings={**self.settings, **settings},
        )

    @property
    def remedy(self) -> Remedy:
        text = ", ".join(self.labels)
        return Remedy(text[:1].upper() + text[1:], self.settings)

    @cached_property
    def answered(self) -> bool:
        """Whether the question has an answer."""
        if self.question.n_tasks > self.max_tasks or (self.quick and _is_slow(self.question)):
            return False
        try:
            if isinstance(self.question, TrafficQuestion):
                self.question.check()
            elif isinstance(self.question, RestoreQuestion):
                self.question.planner().choice("load-only")
            else:
                one_step(self.question).check(self.policy)
        except KvOverlapError:
            return False
        return True


def _is_slow(question: Any) -> bool:
    return isinstance(question, Question) and question.keep and question.schedule != ROW


def one_step(question: Question) -> Question:
    """A question of one step whose last token is that of a longer one."""
    job = question.workload
    longest = job.prompt_tokens + job.gen_tokens - 1
    return replace(question, workload=replace(job, prompt_tokens=longest, gen_tokens=1))


def remedies_for(asking: Asking, progress: Progress) -> list[Remedy]:
    """At least one change of a refused question that leads to an answer.

    Once a change is found, changes of more inputs are left out.
    """
    began_s = monotonic()
    found: list[Remedy] = []
    fewest = 0
    changes = CHANGES.get(type(asking.question), decode_changes)
    for one in changes(asking):
        if found and len(one.labels) > fewest:
            break
        progress(f"Looking for settings that have an answer: {', '.join(one.labels)}")
        known = any(one.settings == other.settings for other in found)
        if not known and one.answered:
            found.append(one.remedy)
            fewest = fewest or len(one.labels)
        spent_s = monotonic() - began_s
        if len(found) == MAX_REMEDIES or spent_s > (ENOUGH_S if found else LIMIT_S):
            break
    return found or [safe(asking).remedy]


def runtime_remedies(
    question: Question | RestoreQuestion, names: Sequence[str], progress: Progress
) -> list[Remedy]:
    """The first of some serving runtimes that has an answer to a question, and no runtime."""
    for name in names:
        progress(f"Looking for a runtime that has an answer: {name}")
        with suppress(KvOverlapError):
            question.gap(name)
            return [Remedy(f"Runtime {name}", {"runtime": name}), NO_RUNTIME]
    return [NO_RUNTIME]


def decode_changes(asking: Asking) -> Iterator[Asking]:
    """Single changes, then one simplification on top of the other, then smaller jobs on more GPUs,
    then another machine, then another model."""
    for make in SIMPLER:
        yield from make(asking)
    yield from _smaller(asking)
    simple = asking
    for make in SIMPLER:
        for one in make(simple):
            simple = one
            yield one
    if simple is not asking:
        yield from _smaller(simple)
    for n in _more_gpus(simple):
        yield from _smaller_job(_shared(simple, n))
    yield from _roomy(simple)
    yield safe(asking)


def _shorter(asking: Asking) -> Iterator[Asking]:
    """The longest prompt that the model has positions for."""
    question = asking.question
    job, most = question.workload, question.whole.max_positions
    if job.max_tokens > most:
        for prompt in below(PROMPTS, most - job.gen_tokens + 1)[:1]:
            label = f"prompt {prompt:,} (the model has {most:,} positions)"
            yield asking.to(label, _with_job(question, prompt_tokens=prompt), prompt=prompt)


def _plain_cache(asking: Asking) -> Iterator[Asking]:
    if asking.question.workload.kv_bits is not None:
        yield asking.to(
            "cache as computed", _with_job(asking.question, kv_bits=None), kv_bits=UNCOMPRESSED
        )


def _offloaded(asking: Asking) -> Iterator[Asking]:
    if asking.quick and _is_slow(asking.question):
        label = "all of the cache in host memory"
        yield asking.to(label, replace(asking.question, keep=False), keep=False)


def _row(asking: Asking) -> Iterator[Asking]:
    if asking.question.schedule != ROW:
        plain = replace(_with_job(asking.question, n_batches=1), schedule="row")
        yield asking.to("row schedule", plain, schedule="row")


def _own_policy(asking: Asking) -> Iterator[Asking]:
    if asking.policy != LP:
        yield asking.to("policy lp", asking.question, policy=LP)


def _one_gpu(asking: Asking) -> Iterator[Asking]:
    changes = asking.question.changes
    if changes.gpus > 1:
        one = replace(asking.question, changes=replace(changes, gpus=1))
        yield asking.to("one GPU per switch", one, gpus=1)


def _whole_memory(asking: Asking) -> Iterator[Asking]:
    changes = asking.question.changes
    if changes.device_gib is not None:
        whole = replace(asking.question, changes=replace(changes, device_gib=None))
        yield asking.to("GPU memory as profiled", whole, memory=None)


def _short_job(asking: Asking) -> Iterator[Asking]:
    """As many decode steps, or as few batches, as the dashboard plans."""
    question = asking.question
    if question.n_tasks <= asking.max_tasks:
        return
    for steps in below(STEPS, question.workload.gen_tokens):
        fewer = _with_job(question, gen_tokens=steps)
        if fewer.n_tasks <= asking.max_tasks:
            yield asking.to(f"{steps} decode steps", fewer, gen=steps)
            return


SIMPLER: tuple[Callable[[Asking], Iterator[Asking]], ...] = (
    _shorter,
    _plain_cache,
    _offloaded,
    _one_gpu,
    _whole_memory,
    _short_job,
    _row,
    _own_policy,
)
"""Changes of one input each, which leave the job as it is if they can."""


def _smaller(asking: Asking) -> Iterator[Asking]:
    """Changes that need less memory of each GPU or of the host."""
    question = asking.question
    yield from first_answered([_shared(asking, n) for n in _more_gpus(asking)])
    yield from _fewer_gpus(asking)
    yield from first_answered(_fewer_sequences(asking))
    if question.workload.kv_bits is None and question.whole.quantises_kv:
        yield asking.to("8-bit cache", _with_job(question, kv_bits=8), kv_bits=8)
    offered = asking.schedules and "schedule" not in asking.settings
    if offered and question.schedule == ROW and question.whole.moves_weights:
        moved = replace(_with_job(question, n_batches=FIRST_N_BATCHES), schedule="column")
        yield asking.to("column schedule", moved, schedule="column", n_batches=FIRST_N_BATCHES)
    yield from first_answered(_shorter_prompts(asking))


def _smaller_job(asking: Asking) -> Iterator[Asking]:
    """Fewer sequences, or one with a shorter prompt."""
    fewer = [asking, *_fewer_sequences(asking)]
    yield from first_answered([*fewer, *_shorter_prompts(fewer[-1])])


def _fewer_sequences(asking: Asking) -> list[Asking]:
    job = asking.question.workload
    return [
        asking.to(f"batch {n}", _with_job(asking.question, batch_size=n), batch=n)
        for n in range(job.batch_size - 1, 0, -1)
    ]


def _shorter_prompts(asking: Asking) -> list[Asking]:
    return [
        asking.to(f"prompt {n:,}", _with_job(asking.question, prompt_tokens=n), prompt=n)
        for n in below(PROMPTS, asking.question.workload.prompt_tokens)
    ]


def _roomy(asking: Asking) -> Iterator[Asking]:
    """The same model on a machine with much memory."""
    question = asking.question
    machine = replace(question, hardware=find_hardware(ROOMY_MACHINE), reference=ROOMY_MACHINE)
    if isinstance(question, Question):
        machine = replace(machine, changes=Changes())
    settings = {"hardware": ROOMY_MACHINE, **UNCHANGED}
    moved = asking.to(f"machine {ROOMY_MACHINE}", replace(machine, tp=1, ep=1), **settings)
    yield from first_answered([moved, *(_shared(moved, n) for n in _more_gpus(moved))])


def _more_gpus(asking: Asking) -> list[int]:
    question = asking.question
    return [n for n in question.whole.tensor_parallel_sizes if n in GPUS and n > question.tp]


def _fewer_gpus(asking: Asking) -> Iterator[Asking]:
    """The largest smaller number of GPUs that has an answer."""
    question = asking.question
    sizes = [n for n in (1, *question.whole.tensor_parallel_sizes) if n in GPUS and n < question.tp]
    shared = (_shared(asking, n) for n in reversed(sizes))
    yield from islice((one for one in shared if one.answered), 1)


def restore_changes(asking: Asking) -> Iterator[Asking]:
    """Single changes of a restore, then another job."""
    question = asking.question
    request, most = question.request, question.whole.max_positions
    prompts = below(RESTORE_PROMPTS, request.prompt_tokens)
    if request.prompt_tokens > most:
        prompts = below(RESTORE_PROMPTS, most + 1)
    more = _more_gpus(asking)
    yield from first_answered([_shared(asking, n) for n in more])
    frac = request.cached_tokens / request.prompt_tokens
    why = f" (the model has {most:,} positions)" if request.prompt_tokens > most else ""
    shorter = []
    for n in prompts:
        cached = min(n - 1, max(1, round(frac * n)))
        asked = replace(request, prompt_tokens=n, cached_tokens=cached)
        shorter.append(asking.to(f"prompt {n:,}{why}", replace(question, request=asked), prompt=n))
    yield from first_answered(shorter)
    yield from _fewer_gpus(asking)
    usual = replace(request, chunk_tokens=512, io_chunk_tokens=512, gpu_share=1.0)
    if usual != request:
        label = "chunks of 512 tokens, the whole GPU"
        yield asking.to(label, replace(question, request=usual), chunk=512, io_chunk=512, share=1.0)
    for n in more:
        yield from first_answered([_shared(one, n) for one in shorter])
    for one in (asking, *shorter[:1]):
        yield from _roomy(one)
    yield safe(asking)


def traffic_changes(asking: Asking) -> Iterator[Asking]:
    """Single changes of a service, then another one."""
    question = asking.question
    yield from first_answered([_shared(asking, n) for n in _more_gpus(asking)])
    yield from _fewer_gpus(asking)
    few = tuple(sorted(question.sizes)[:FEW_SIZES])
    if few != question.sizes:
        text = size_list(few)
        yield asking.to(f"sizes {text}", replace(question, sizes=few), sizes=text)
    asked = question.requests.asked
    if asked is not None and asked.requests > FEW_REQUESTS:
        fewer = replace(question.requests, asked=replace(asked, requests=FEW_REQUESTS))
        label = f"{FEW_REQUESTS} requests"
        yield asking.to(label, replace(question, requests=fewer), requests=FEW_REQUESTS)
    chat = Requests(GENERATED_FILE, asked=EXAMPLES[CHAT])
    if question.requests != chat:
        yield asking.to("requests of a chat", replace(question, requests=chat), trace=CHAT)
    yield from _roomy(asking)
    yield safe(asking)


CHANGES = {RestoreQuestion: restore_changes, TrafficQuestion: traffic_changes}
"""Changes by the kind of question; others are those of a decode."""


def _shared(asking: Asking, gpus: int) -> Asking:
    label = "one GPU" if gpus == 1 else f"{gpus} GPUs share the model"
    return asking.to(label, replace(asking.question, tp=gpus, ep=1), tp=gpus, ep=1)


def safe(asking: Asking) -> Asking:
    """Another model on another machine, with a short prompt, which has an answer."""
    model, machine = find_model(SAFE_MODEL), find_hardware(SAFE_MACHINE)
    question = asking.question
    names = {"model": SAFE_MODEL, "hardware": SAFE_MACHINE}
    label = f"model {SAFE_MODEL} on {SAFE_MACHINE}"
    blank = replace(asking, settings={}, labels=())
    if isinstance(question, TrafficQuestion):
        served = replace(
            question,
            requests=Requests(GENERATED_FILE, asked=EXAMPLES[CHAT]),
            whole=model,
            hardware=machine,
            reference=SAFE_MACHINE,
            sizes=SAFE_SIZES,
            tp=1,
            ep=1,
        )
        text = size_list(SAFE_SIZES)
        return blank.to(label, served, **names, trace=CHAT, sizes=text, tp=1, ep=1)
    if isinstance(question, RestoreQuestion):
        request = replace(question.request, prompt_tokens=1024, cached_tokens=1023, tier="dram")
        plain = replace(
            question,
            whole=model,
            hardware=machine,
            reference=SAFE_MACHINE,
            request=request,
            link_bytes_per_s=None,
            tp=1,
            ep=1,
        )
        settings: dict[str, Any] = {"prompt": 1024, "cached": 1.0, "tier": "dram", "tp": 1, "ep": 1}
        return blank.to(label, plain, **names, **settings)
    job = replace(
        question.workload, batch_size=8, prompt_tokens=512, gen_tokens=1, n_batches=1, kv_bits=None
    )
    plain_one = replace(
        question,
        whole=model,
        hardware=machine,
        reference=SAFE_MACHINE,
        workload=job,
        schedule="row",
        changes=Changes(),
        tp=1,
        ep=1,
    )
    settings = {
        "batch": 8,
        "prompt": 512,
        "gen": 1,
        "schedule": "row",
        "kv_bits": UNCOMPRESSED,
        "policy": LP,
        **UNCHANGED,
        "tp": 1,
        "ep": 1,
    }
    return blank.to(label, plain_one, **names, **settings)


def first_answered(asked: Sequence[Asking]) -> Iterator[Asking]:
    """The first of some changes, from large to small, that has an answer, found by bisection."""
    low, high = 0, len(asked)
    while low < high:
        middle = (low + high) // 2
        if asked[middle].answered:
            high = middle
        else:
            low = middle + 1
    yield from asked[low : low + 1]


def below(values: Sequence[int], most: int) -> list[int]:
    """The values under `most`, the largest first."""
    return sorted((value for value in values if value < most), reverse=True)


def _with_job(question: Question, **values: Any) -> Question:
    return replace(question, workload=replace(question.workload, **values))
