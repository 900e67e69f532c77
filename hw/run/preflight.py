"""Checks before anything is allocated: does a graph run on this device, and does it fit?"""

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


def check_restore(
    graph: TaskGraph, request: RestoreRequest, model: ModelSpec, prompt: Tensor
) -> None:
    """Refuse a restore graph that belongs to another model or prompt, or cannot run.

    Args:
        request: the graph's workload.
        model: of the loaded weights.
        prompt: [S] token ids.

    Raises:
        Mismatch: model or prompt length differs from the graph's.
        BadInput: as `check_runnable_request`.
    """
    check_runnable_request(graph.model, request)
    if model != graph.model or prompt.shape[0] != request.prompt_tokens:
        raise Mismatch(
            f"the plan is for {request.prompt_tokens} tokens of {graph.model.name} "
            f"({graph.model.dtype}), the weights are of {model.name} ({model.dtype}) and the "
            f"prompt has {prompt.shape[0]} tokens; plan for what is loaded."
        )


def check_runnable_request(model: ModelSpec, request: RestoreRequest) -> None:
    """Refuse a restore that can only be simulated.

    Raises:
        BadInput: K and V are compressed on the tier, or there are no kernels for the model.
    """
    check_runnable(model)
    if request.tier_kv_bits < 16:
        raise BadInput(
            f"tier_kv_bits(={request.tier_kv_bits}) must be 16 to run: compressed K and V are only "
            "simulated."
        )


def check_restore_fits(graph: TaskGraph, backend: Backend) -> None:
    """Refuse a restore that exceeds the memory of device or host.

    The device holds weights, K and V, and at most X of every token. The host holds K, V and X of
    the whole prompt, and staging buffers of a few chunks.

    Raises:
        DoesNotFit: with the memory needed, the memory available, and the option to lower.
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
    reserved_host_bytes: int = 0,
    cache: Sequence[HostRows] | None = None,
    reserved_device_bytes: int = 0,
) -> None:
    """Refuse a decode graph that exceeds the memory of device or host.

    The reference decode needs all weights on the device, under a column schedule too.

    Args:
        reserved_host_bytes: host memory that other users will allocate.
        cache: rows of each layer on the host, by default all, which the reference decode needs.
        reserved_device_bytes: device memory that other users will allocate.

    Raises:
        DoesNotFit: with the memory needed, the memory available, and the option to lower.
    """
    memory = backend.memory()
    device_bytes = memory.device_bytes - reserved_device_bytes
    if graph.schedule == "column":
        device_bytes -= graph.model.n_layers * graph.model.layer_weight_bytes
    where = f"this {backend.kind} device"
    rows = cache or all_rows(graph.model, graph.workload)
    check_fits(graph, device_bytes, memory.host_bytes - reserved_host_bytes, where, rows)
