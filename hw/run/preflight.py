"""Which restores a device can run, said before anything is allocated."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from hw.backends import Backend
from hw.model.weights import check_runnable
from sim.errors import BadInput, DoesNotFit, Mismatch
from sim.graph.jobs import RestoreRequest
from sim.graph.memory import HostRows, all_rows, check_fits
from sim.graph.tasks import TaskGraph
from sim.model.spec import ModelSpec


def check_restore(graph: TaskGraph, model: ModelSpec, prompt: Tensor) -> RestoreRequest:
    """The request of a graph, provided that it is a restore of this prompt by this model.

    Args:
        prompt: [S] token ids.

    Raises:
        Mismatch: the graph is of something else.
        BadInput: as `check_runnable_request`.
    """
    request = check_runnable_request(graph)
    if model != graph.model or prompt.shape[0] != request.prompt_tokens:
        raise Mismatch(
            f"the plan is for {request.prompt_tokens} tokens of {graph.model.name} "
            f"({graph.model.dtype}), the weights are of {model.name} ({model.dtype}) and the "
            f"prompt has {prompt.shape[0]} tokens; plan for what is loaded."
        )
    return request


def check_runnable_request(graph: TaskGraph) -> RestoreRequest:
    """The request of a restore graph that a device can run.

    Raises:
        BadInput: its K and V are compressed, or there are no kernels for its model.
        Mismatch: the graph is of a decode.
    """
    request = graph.workload
    if not isinstance(request, RestoreRequest):
        raise Mismatch("the graph is of a decode, not of a restore; run it as such.")
    check_runnable(graph.model)
    if request.tier_kv_bits < 16:
        raise BadInput(
            f"tier_kv_bits(={request.tier_kv_bits}) must be 16 to run: compressed K and V are only "
            "simulated."
        )
    return request


def check_restore_fits(graph: TaskGraph, backend: Backend) -> None:
    """Refuse a restore that device or host has no room for, before anything is allocated.

    The device holds weights, K and V, and at most X of every token; the host K, V and X of the
    whole prompt, and staging buffers of a few chunks.

    Raises:
        DoesNotFit: names what is too large and what to lower.
    """
    model, tokens = graph.model, graph.workload.prompt_tokens
    cache_bytes = model.n_layers * tokens * (model.kv_token_bytes + model.x_token_bytes)
    memory = backend.memory()
    for where, need, has in (
        ("device", model.weight_bytes + cache_bytes, memory.device_bytes),
        ("host", 2 * cache_bytes, memory.host_bytes),
    ):
        if need > has:
            raise DoesNotFit(
                f"restoring {tokens} tokens of {model.name} needs {need / 2**30:.1f} GiB of "
                f"{where} memory and this {backend.kind} device has {has / 2**30:.1f} GiB; lower "
                "--prompt or choose a smaller model."
            )


def check_graph_fits(
    graph: TaskGraph,
    backend: Backend,
    held_host_bytes: int = 0,
    cache: Sequence[HostRows] | None = None,
    held_device_bytes: int = 0,
) -> None:
    """Refuse a graph that the device or host has no room for, before anything is allocated.

    The reference decode needs all weights on the device, those of a column schedule too.

    Args:
        held_host_bytes: host memory that something else will take.
        held_device_bytes: device memory that something else will take.
        cache: rows of each layer on the host, by default all, which the reference decode needs.

    Raises:
        DoesNotFit: names what is too large and what to lower.
    """
    memory = backend.memory()
    device_bytes = memory.device_bytes - held_device_bytes
    if graph.schedule == "column":
        device_bytes -= graph.model.n_layers * graph.model.layer_weight_bytes
    where = f"this {backend.kind} device"
    rows = cache or all_rows(graph.model, graph.workload)
    check_fits(graph, device_bytes, memory.host_bytes - held_host_bytes, where, rows)
