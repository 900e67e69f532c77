"""A CUDA device for a torch build without CUDA: real numbers, and the errors of a GPU.

A device tensor is a wrapper subclass: torch, Python code and this file see `cuda:0`, and its
numbers are those of a CPU tensor inside. `FakeTensorMode` is no alternative here for two reasons.
It computes no values, so that tokens, `verify` and profiles could not be tested. And on a build
without CUDA indexing a fake CUDA tensor raises "PyTorch is not linked with support for cuda
devices", because `Tensor.__getitem__` asks for a device guard; the wrapper indexes in Python.

`FakeCudaBackend` is the `Backend` with such tensors. While it is open a dispatch mode raises
`Refused` for an operation that a CUDA device would refuse, or that would spoil a measurement:

- tensors of two devices in one operation (`copy_` and 0-dim operands of pointwise ones excepted),
- a generator of another device than the tensor that it fills,
- an `out=` of another dtype class than the result: the CPU casts a temporary, CUDA has no kernel,
- `numpy()` of a device tensor,
- between `begin` and `finish`, operations on the device outside the work of a lane,
- in the work of a lane: whatever makes the host wait (values of device tensors, blocking or
  pageable copies, results whose shape depends on values) and new host memory. A copy of other
  strides or another dtype is one too: it goes through a temporary, on the host or the device,
- copies to the host that nobody waits for.

Uninitialised memory is NaN, or all ones in integers, so that a read of it shows.

Work runs in the thread that opened the backend. Times are counts of operations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Self
from unittest.mock import patch

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch_operations import (
    FUSED_ATTENTION,
    by_name,
    functional,
    has_efficient,
    has_flash,
    kind_of,
    leaves,
    left_out,
    mapped,
    new_bias,
    same_dense_strides,
)

from hw.backends.base import Memory
from hw.backends.pacing import Transfer
from hw.environment import host_environment
from sim.errors import BadInput
from sim.lanes import HOST, TIER_LANES
from sim.machine.availability import ALWAYS, Availability

DEVICE = torch.device("cuda", 0)
CPU = torch.device("cpu")
OPERATION_S = 1e-6
MEMORY_BYTES = 2**34
HOST_LANES = (HOST, *TIER_LANES)

aten = torch.ops.aten

VALUES = frozenset(
    {"_local_scalar_dense", "item", "is_nonzero", "equal", "allclose", "nonzero", "masked_select"}
    | {"unique_dim", "_unique2", "unique_consecutive", "bincount", "argwhere"}
)
"""Operations of which the host needs a value: on a device it waits for one."""

GUARDED = {
    Tensor.copy_: aten.copy_.default,
    Tensor.nonzero: aten.nonzero.default,
    torch.nonzero: aten.nonzero.default,
}
"""Operations whose Python bindings ask for a device guard."""

INDEXED = frozenset({"index", "index_put", "index_put_"})
UNINITIALISED = frozenset({"empty", "new_empty", "empty_like", "empty_strided"})
CONVERSIONS = frozenset({"to", "_to_copy", "type_as"})
_torch_generator = torch.Generator


class Refused(RuntimeError):
    """A CUDA device would refuse this, or the host would wait for it in a timed region."""


class DeviceTensor(Tensor):
    """A tensor that says it is on `cuda:0`; `inside` holds its numbers on the CPU."""

    inside: Tensor
    backend: FakeCudaBackend

    @staticmethod
    def __new__(cls, inside: Tensor, backend: FakeCudaBackend) -> DeviceTensor:
        with torch.inference_mode(inside.is_inference()):
            made = Tensor._make_wrapper_subclass(
                cls,
                inside.shape,
                strides=inside.stride(),
                storage_offset=inside.storage_offset(),
                dtype=inside.dtype,
                device=DEVICE,
            )
        made.inside, made.backend = inside, backend
        return made

    def __repr__(self, **_: object) -> str:
        return f"DeviceTensor({list(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if any(one.__name__ == "CausalBias" for one in types):
            return NotImplemented  # it comes second, and has its own attention
        first = args[0] if args else None
        with torch._C.DisableTorchFunctionSubclass():
            if isinstance(first, DeviceTensor):
                if func is Tensor.__getitem__:
                    return _indexed(first, args[1])
                if func is Tensor.__setitem__:
                    part, value = _indexed(first, args[1]), args[2]
                    if isinstance(value, Tensor):
                        return first.backend.operation(aten.copy_.default, (part, value), {})
                    return part.fill_(value)
                if func in GUARDED:
                    return first.backend.operation(GUARDED[func], args, kwargs or {})
                if func is Tensor.numpy:
                    raise Refused("can't convert cuda:0 device type tensor to numpy")
                if func in (Tensor.item, Tensor.tolist, Tensor.__float__, Tensor.__int__):
                    first.backend.refuse_waiting(func.__name__)
                    return func(first.inside)
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        found = [one for one in leaves((args, kwargs)) if isinstance(one, DeviceTensor)]
        return found[0].backend.operation(func, args, kwargs or {})


def _indexed(x: DeviceTensor, index: object) -> Tensor:
    """`x[index]` by operations that ask for no device guard."""
    parts = list(index) if isinstance(index, tuple) else [index]
    if sum(one is Ellipsis for one in parts):
        at = next(at for at, one in enumerate(parts) if one is Ellipsis)
        taken = sum(one is not None for one in parts) - 1
        parts[at : at + 1] = [slice(None)] * (x.dim() - taken)
    dim = 0
    for one in parts:
        if one is None:
            x = aten.unsqueeze(x, dim)
        elif isinstance(one, slice):
            if one != slice(None):
                x = aten.slice(x, dim, one.start, one.stop, 1 if one.step is None else one.step)
        elif isinstance(one, int):
            x, dim = aten.select(x, dim, one), dim - 1
        else:
            x = aten.index(x, [None] * dim + [torch.as_tensor(one)])
        dim += 1
    return x


class _DeviceGenerator(_torch_generator):
    """A generator that counts as one of the device."""


def _generator(device: torch.device | str = "cpu") -> torch.Generator:
    return _DeviceGenerator() if torch.device(device).type == "cuda" else _torch_generator()


class _Calls(TorchFunctionMode):
    """What must be seen before torch parses the arguments of a call."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        device = kwargs.get("device")
        generator = kwargs.get("generator")
        if generator is not None and func is not torch.Tensor.__getitem__:
            tensor = args[0] if args and isinstance(args[0], Tensor) else None
            there = torch.device(device or (CPU if tensor is None else tensor.device)).type
            here = "cuda" if isinstance(generator, _DeviceGenerator) else "cpu"
            if there != here:
                raise Refused(f"Expected a '{there}' device type for generator but found '{here}'")
        if func in (torch.tensor, torch.as_tensor) and device is not None:
            return func(*args, **{**kwargs, "device": None}).to(device)
        return func(*args, **kwargs)


class _Operations(TorchDispatchMode):
    """Hands every operation to the backend; its key keeps torch from initialising CUDA."""

    _mode_key = torch._C._TorchDispatchModeKey.FAKE

    def __init__(self, backend: FakeCudaBackend) -> None:
        super().__init__()
        self._backend = backend

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # importing it takes seconds

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return self._backend.operation(func, args, kwargs or {})


@dataclass(eq=False)
class FakeMarker:
    lane: str
    work: Callable[[], object]
    after: Sequence[FakeMarker]
    resolve: Callable[[], bool | None] | None
    done: Callable[[float], object] | None
    start_s: float = 0.0
    end_s: float = 0.0
    ended: bool = field(default=False)


class FakeCudaBackend:
    """Runs work at once when it is issued, in a run in turn when its run is finished.

    Attributes:
        waits: copies of pageable memory, for which the protocol lets the host wait.
        operations: names of the operations in the work of lanes, views included.
    """

    kind = "cuda"

    def __init__(self) -> None:
        self.device = DEVICE
        self.waits = 0
        self.operations: list[str] = []
        self._running = self._in_turn = self._pageable = False
        self._lane: str | None = None
        self._turns: list[FakeMarker] = []
        self._free_s: dict[str, float] = {}
        self._pinned: dict[int, Tensor] = {}
        self._computed: dict[tuple[Any, ...], list[torch.dtype]] = {}
        self._open = ExitStack()

    def host_empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        self.refuse_waiting("pinning host memory")
        return self._pin(_spoilt(torch.empty(tuple(shape), dtype=dtype)))

    def _pin(self, tensor: Tensor) -> Tensor:
        self._pinned[_memory(tensor)] = tensor
        return tensor

    def device_empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        return torch.empty(tuple(shape), dtype=dtype, device=self.device)

    def memory(self) -> Memory:
        return Memory(MEMORY_BYTES, MEMORY_BYTES)

    def head_start_s(self) -> float:
        return 5e-3

    def begin(
        self,
        trace: Availability = ALWAYS,
        in_turn: bool = False,
        launches: int = 0,  # noqa: ARG002 - nothing is held here
    ) -> None:
        if trace.lanes:
            raise BadInput("a trace takes part of this GPU away; run it with --device cpu.")
        if self._running:
            raise Refused("begin of a run within another")
        self._running, self._in_turn, self._turns, self._free_s = True, in_turn, [], {}

    def launch(
        self,
        lane: str,
        work: Callable[[], object],
        after: Sequence[FakeMarker] = (),
        resolve: Callable[[], bool | None] | None = None,
        done: Callable[[float], object] | None = None,
    ) -> FakeMarker:
        if not self._running:
            raise Refused("issue outside of a run")
        handle = FakeMarker(lane, work, after, resolve, done)
        if self._in_turn:
            self._turns.append(handle)
        else:
            self._do(handle)
        return handle

    def _do(self, handle: FakeMarker) -> None:
        handle.start_s = max(
            [self._free_s.get(handle.lane, 0.0), *(earlier.end_s for earlier in handle.after)]
        )
        before = len(self.operations)
        self._lane = handle.lane
        try:
            with torch.inference_mode():
                handle.work()
        finally:
            self._lane = None
        handle.end_s = handle.start_s + OPERATION_S * (1 + len(self.operations) - before)
        self._free_s[handle.lane], handle.ended = handle.end_s, True
        if handle.done is not None:
            handle.done(handle.end_s - handle.start_s)

    def _take_turns(self) -> None:
        """Lanes take turns, each with its next work if what that waits for has ended."""
        queues: dict[str, list[FakeMarker]] = {}
        for handle in self._turns:
            queues.setdefault(handle.lane, []).append(handle)
        while any(queues.values()):
            moved = False
            for queue in queues.values():
                if not queue or not all(earlier.ended for earlier in queue[0].after):
                    continue
                handle = queue[0]
                goes = handle.resolve is None or handle.resolve()
                if goes is None:
                    continue
                moved = True
                queue.pop(0)
                if goes:
                    self._do(handle)
                else:
                    handle.start_s = self._free_s.get(handle.lane, 0.0)
                    handle.end_s, handle.ended = handle.start_s, True
            if not moved:
                raise Refused("no lane can go on: work waits for itself, or never settles")

    def copy(self, destination: Tensor, source: Tensor, pageable: bool = False) -> None:
        host = source if source.device.type == "cpu" else destination
        if not pageable and not host.is_pinned():
            raise RuntimeError("a copy lane was given pageable host memory")
        self.waits += pageable
        self._pageable = pageable
        try:
            destination.copy_(source, non_blocking=not pageable)
        finally:
            self._pageable = False

    def copy_all(self, parts: Sequence[tuple[Tensor, Tensor]]) -> None:
        for destination, source in parts:
            self.copy(destination, source)

    def transfer(self) -> Transfer:
        return Transfer(None)

    def finish(self) -> None:
        try:
            self._take_turns()
        finally:
            self._running = self._in_turn = False

    def times_s(self, handles: Sequence[FakeMarker]) -> list[tuple[float, float]]:
        return [(handle.start_s, handle.end_s) for handle in handles]

    def worked_s(self, handles: Sequence[FakeMarker]) -> list[float]:
        return [handle.end_s - handle.start_s for handle in handles]

    def environment(self) -> dict[str, Any]:
        return {**host_environment(), "device": "fake cuda", "cuda": "none"}

    def __enter__(self) -> Self:
        from torch.nn.attention.bias import CausalBias  # 3 s: imports torch's compiler

        self._open.enter_context(patch.object(torch, "Generator", _generator))
        for kernel, has in (("flash", has_flash), ("efficient", has_efficient)):
            name = f"torch.nn.attention.bias.can_use_{kernel}_attention"
            self._open.enter_context(patch(name, has))
        # Its own constructor allocates a tensor, which no dispatch mode can turn into a subclass.
        self._open.enter_context(patch.object(CausalBias, "__new__", new_bias))
        self._open.enter_context(_Operations(self))
        self._open.enter_context(_Calls())
        return self

    def __exit__(self, *exc: object) -> None:
        self._open.close()

    @contextmanager
    def work_on(self, lane: str) -> Iterator[None]:
        """What a lane's work may do, for one block: as `begin`, one piece of work, `finish`."""
        self.begin()
        self._lane = lane
        try:
            with torch.inference_mode():
                yield
        finally:
            self._lane = None
            self.finish()

    def refuse_waiting(self, what: str) -> None:
        """Raise Refused where the host may not wait for the device."""
        if self._lane is not None:
            raise Refused(f"{what} makes the host wait in the work of lane {self._lane}")
        if self._running:
            raise Refused(f"{what} between begin and finish, outside of any lane")

    def operation(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """The result of one operation of torch, its device tensors unwrapped and wrapped again."""
        name = func.overloadpacket.__name__
        if self._lane is not None:
            self.operations.append(name)
        if name == "is_pinned":
            return args[0].device.type == "cpu" and self._is_pinned(args[0])
        if name == "copy_":
            return self._copied(func, args, kwargs)
        if name in CONVERSIONS:
            return self._converted(func, args, kwargs)
        tensors = [one for one in leaves((args, kwargs)) if isinstance(one, Tensor)]
        mine = [one for one in tensors if isinstance(one, DeviceTensor)]
        there = kwargs.get("device")
        to_device = bool(mine) if there is None else torch.device(there).type == "cuda"
        if len(mine) not in (0, len(tensors)) or (mine and name in INDEXED):
            self._check_devices(func, name, args, tensors)
        if mine or to_device:
            self._check_place(func, name)
        if mine:
            self._check_dtype(func, args, kwargs)
        if there is not None:
            kwargs = {**kwargs, "device": CPU}
        pinned = bool(kwargs.get("pin_memory"))
        if pinned:
            self.refuse_waiting("pinning host memory")
            kwargs = {**kwargs, "pin_memory": False}
        result = self._run(func, args, kwargs, to_device)
        if name in UNINITIALISED:
            _spoilt(result)
        if not to_device:
            self._check_host_memory(func, tensors, result)
        return self._pin(result) if pinned else result

    def _run(self, func: Any, args: Any, kwargs: Any, to_device: bool) -> Any:
        """Compute on the tensors inside; a result that is an argument comes back as that."""
        given: dict[int, DeviceTensor] = {}

        def unwrapped(one: DeviceTensor) -> Tensor:
            given[id(one.inside)] = one
            return one.inside

        args, kwargs = mapped(unwrapped, DeviceTensor, (tuple(args), kwargs))
        fused = FUSED_ATTENTION.get(func.overloadpacket.__name__)
        if fused is not None:
            rest = [
                torch.empty(0) if str(one.type) == "Tensor" else 0 for one in func._schema.returns
            ]
            result = (fused(by_name(func, args, kwargs)), *rest[1:])
        elif left_out(func, args, kwargs):
            result = kwargs["out"].zero_()
        else:
            result = func(*args, **kwargs)
        for wrapper in given.values():
            if wrapper.shape != wrapper.inside.shape:
                raise Refused(f"{func} resized a tensor of shape {tuple(wrapper.shape)}")

        def wrapped(one: Tensor) -> Tensor:
            return given[id(one)] if id(one) in given else DeviceTensor(one, self)

        return mapped(wrapped, Tensor, result) if to_device else result

    def _is_pinned(self, tensor: Tensor) -> bool:
        at = _memory(tensor)
        return at != 0 and at in self._pinned

    def _check_place(self, func: Any, name: str) -> None:
        if name in VALUES:
            self.refuse_waiting(name)
        elif self._running and self._lane is None and not func.is_view:
            raise Refused(f"{func} on the device between begin and finish, outside of any lane")

    def _check_devices(
        self, func: Any, name: str, args: Sequence[Any], tensors: Sequence[Tensor]
    ) -> None:
        if name in INDEXED:
            at = [one for one in args[1] if one is not None]
            if any(one.dtype in (torch.bool, torch.uint8) for one in at):
                self.refuse_waiting("a boolean index")
            if any(one.device.type == "cpu" for one in at):
                self.refuse_waiting("an index in host memory")
            tensors = [one for one in tensors if all(one is not other for other in at)]
        scalars = torch.Tag.pointwise in func.tags
        for number, one in enumerate(tensors):
            is_scalar = scalars and number > 0 and one.dim() == 0
            if one.device.type != "cuda" and not is_scalar:
                raise Refused(
                    "Expected all tensors to be on the same device, but found at least two "
                    f"devices, cuda:0 and {one.device}! ({func})"
                )

    def _check_dtype(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        """Refuse results of integers in a tensor of floats, for which the CPU has a temporary."""
        computes = functional(func)
        if computes is None:
            return
        outs = [argument.name for argument in func._schema.arguments if argument.kwarg_only]
        outs = [name for name in outs if isinstance(kwargs.get(name), Tensor)]
        inputs = {name: value for name, value in kwargs.items() if name not in outs}
        targets = [kwargs[name] for name in outs] or [args[0]]
        key = (func, *(kind_of(one) for one in leaves((args, tuple(inputs.values())))))
        if key not in self._computed:
            meta_args, meta_inputs = mapped(_on_meta, Tensor, (tuple(args), inputs))
            computed = leaves([computes(*meta_args, **meta_inputs)])
            self._computed[key] = [one.dtype for one in computed]
        for target, dtype in zip(targets, self._computed[key], strict=True):
            if dtype != torch.bool and dtype.is_floating_point != target.is_floating_point():
                raise Refused(
                    f"'{func.overloadpacket.__name__}_cuda' not implemented for {target.dtype}: "
                    f"{func} computes {dtype}"
                )

    def _check_host_memory(self, func: Any, tensors: Sequence[Tensor], result: object) -> None:
        """Refuse new host memory in the work of a lane that is the device's."""
        if self._lane is None or self._lane in HOST_LANES or not isinstance(result, Tensor):
            return
        held = {_memory(one) for one in tensors if one.device.type == "cpu"}
        if result.numel() and _memory(result) not in held:
            raise Refused(f"{func} allocates host memory in the work of lane {self._lane}")

    def _copied(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Tensor:
        """`copy_` within and between the device and the host."""
        given = by_name(func, args, kwargs)
        into, source = given["self"], given["src"]
        non_blocking = bool(given.get("non_blocking"))
        mine = isinstance(into, DeviceTensor), isinstance(source, DeviceTensor)
        if any(mine):
            self._check_place(func, "copy_")
        if mine == (False, True) and non_blocking and self._lane is None:
            raise Refused("a non_blocking copy to the host outside of a lane, before any wait")
        if mine[0] != mine[1] and source.dim() > 0 and self._lane and not self._pageable:
            self._check_crossing(into, source, non_blocking)
        inside = [one.inside if isinstance(one, DeviceTensor) else one for one in (into, source)]
        inside[0].copy_(inside[1])
        return into

    def _check_crossing(self, into: Tensor, source: Tensor, non_blocking: bool) -> None:
        """Refuse a copy between host and device that no stream can do by itself."""
        host = source if isinstance(into, DeviceTensor) else into
        if not self._is_pinned(host):
            self.refuse_waiting("a copy of pageable host memory")
        if not non_blocking:
            self.refuse_waiting("a copy without non_blocking=True")
        if into.dtype != source.dtype:
            self.refuse_waiting(f"a copy from {source.dtype} to {into.dtype}")
        if into.shape != source.shape or not same_dense_strides(into, source):
            self.refuse_waiting("a copy between host and device of other strides")

    def _converted(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Tensor:
        """`to` in its forms: another device, another dtype, or the tensor itself."""
        given = by_name(func, args, kwargs)
        tensor, other = given["self"], given.get("other")
        dtype = given.get("dtype") or (tensor.dtype if other is None else other.dtype)
        there = given.get("device") or (tensor.device if other is None else other.device)
        same = torch.device(there).type == tensor.device.type
        new = given.get("copy") or func.overloadpacket is aten._to_copy
        if same and dtype == tensor.dtype and not new:
            return tensor
        inside = tensor.inside if isinstance(tensor, DeviceTensor) else tensor
        made = inside.to(dtype, copy=True)
        if given.get("memory_format") == torch.contiguous_format:
            made = made.contiguous()
        if torch.device(there).type == "cpu":
            if not same:
                self.refuse_waiting("a copy of a device tensor to new host memory")
                if given.get("non_blocking"):
                    raise Refused("a non_blocking copy to the host that nobody waits for")
            self._check_host_memory(func, [], made)
            return made
        if not same and self._lane is not None:
            self._check_crossing(DeviceTensor(made, self), tensor, bool(given.get("non_blocking")))
        self._check_place(func, "to")
        return DeviceTensor(made, self)


def _memory(tensor: Tensor) -> int:
    """Where the memory of a host tensor begins, which its views share."""
    return tensor.untyped_storage().data_ptr()


def _spoilt(tensor: Tensor) -> Tensor:
    """Fill uninitialised memory with what shows when it is read."""
    inside = tensor.inside if isinstance(tensor, DeviceTensor) else tensor
    value = 255 if inside.dtype == torch.uint8 else -1
    with torch.inference_mode(inside.is_inference()):
        inside.fill_(float("nan") if inside.is_floating_point() else value)
    return tensor


def _on_meta(tensor: Tensor) -> Tensor:
    inside = tensor.inside if isinstance(tensor, DeviceTensor) else tensor
    return torch.empty_strided(inside.shape, inside.stride(), dtype=inside.dtype, device="meta")
