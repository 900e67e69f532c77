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
from functools import cache
from typing import Any, Self
from unittest.mock import patch

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from hw.backends.base import Memory
from hw.backends.pacing import Transfer
from hw.environment import host_environment
from sim.errors import BadInput
from sim.lanes import HOST, LANES, TIER_LANES
from sim.machine.availability import ALWAYS, Availability

DEVICE = torch.device("cuda", 0)
CPU = torch.device("cpu")
OPERATION_S = 1e-6
MEMORY_BYTES = 2**34
MAX_PRODUCT = 2**22
"""Multiplications of the largest product in 16 bits that is computed; larger ones give zeros."""

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
        found = [one for one in _leaves((args, kwargs)) if isinstance(one, DeviceTensor)]
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
        for kernel, has in (("flash", _has_flash), ("efficient", _has_efficient)):
            name = f"torch.nn.attention.bias.can_use_{kernel}_attention"
            self._open.enter_context(patch(name, has))
        # Its own constructor allocates a tensor, which no dispatch mode can turn into a subclass.
        self._open.enter_context(patch.object(CausalBias, "__new__", _new_bias))
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
        tensors = [one for one in _leaves((args, kwargs)) if isinstance(one, Tensor)]
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

        args, kwargs = _mapped(unwrapped, DeviceTensor, (tuple(args), kwargs))
        fused = FUSED_ATTENTION.get(func.overloadpacket.__name__)
        if fused is not None:
            rest = [
                torch.empty(0) if str(one.type) == "Tensor" else 0 for one in func._schema.returns
            ]
            result = (fused(_by_name(func, args, kwargs)), *rest[1:])
        elif _left_out(func, args, kwargs):
            result = kwargs["out"].zero_()
        else:
            result = func(*args, **kwargs)
        for wrapper in given.values():
            if wrapper.shape != wrapper.inside.shape:
                raise Refused(f"{func} resized a tensor of shape {tuple(wrapper.shape)}")

        def wrapped(one: Tensor) -> Tensor:
            return given[id(one)] if id(one) in given else DeviceTensor(one, self)

        return _mapped(wrapped, Tensor, result) if to_device else result

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
        functional = _functional(func)
        if functional is None:
            return
        outs = [argument.name for argument in func._schema.arguments if argument.kwarg_only]
        outs = [name for name in outs if isinstance(kwargs.get(name), Tensor)]
        inputs = {name: value for name, value in kwargs.items() if name not in outs}
        targets = [kwargs[name] for name in outs] or [args[0]]
        key = (func, *(_kind(one) for one in _leaves((args, tuple(inputs.values())))))
        if key not in self._computed:
            meta_args, meta_inputs = _mapped(_on_meta, Tensor, (tuple(args), inputs))
            computed = _leaves([functional(*meta_args, **meta_inputs)])
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
        given = _by_name(func, args, kwargs)
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
        if into.shape != source.shape or not _same_dense_strides(into, source):
            self.refuse_waiting("a copy between host and device of other strides")

    def _converted(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Tensor:
        """`to` in its forms: another device, another dtype, or the tensor itself."""
        given = _by_name(func, args, kwargs)
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


class _Stream:
    """A stream that notes what is enqueued on it."""

    def __init__(self, calls: list[tuple[str, ...]], name: str) -> None:
        self.calls, self.name = calls, name

    def wait_event(self, event: _Event) -> None:
        self.calls.append((self.name, "waits for", event.name))


class _Event:
    """An event, named after the stream that recorded it and its number there."""

    def __init__(self, **_: object) -> None:
        self.name = ""

    def record(self, stream: _Stream) -> None:
        number = sum(call[:2] == (stream.name, "records") for call in stream.calls)
        self.name = f"{stream.name}.{number}"
        stream.calls.append((stream.name, "records", self.name))

    def synchronize(self) -> None:
        """Everything has happened already."""


@dataclass
class FakeStreams:
    """Stands for the streams and events of `torch.cuda`, so that `CudaBackend` itself can run.

    Attributes:
        calls: (stream, what it does, event) in the order of the calls.
        current: the stream that operations of the calling thread go to.
    """

    calls: list[tuple[str, ...]] = field(default_factory=list)
    made: int = 0

    def __post_init__(self) -> None:
        self.outside = self.current = _Stream(self.calls, "outside")

    def _make(self, _device: object) -> _Stream:
        lane = (*LANES, *TIER_LANES)[self.made]
        self.made += 1
        return _Stream(self.calls, lane)

    def _set(self, stream: _Stream) -> None:
        self.current = stream

    @contextmanager
    def installed(self) -> Iterator[FakeStreams]:
        """`torch.cuda` with these streams, for one block."""

        def nothing(*_: object) -> None:
            return None

        @contextmanager
        def on(stream: _Stream) -> Iterator[None]:
            before, self.current = self.current, stream
            yield
            self.current = before

        fakes = {
            "current_device": lambda: 0,
            "current_stream": lambda _device: self.current,
            "set_stream": self._set,
            "stream": on,
            "Stream": self._make,
            "Event": _Event,
            "synchronize": nothing,
            "empty_cache": nothing,
            "_sleep": nothing,
        }
        with ExitStack() as patches:
            for name, fake in fakes.items():
                patches.enter_context(patch.object(torch.cuda, name, fake))
            patches.enter_context(patch.object(torch.backends.cuda, "enable_cudnn_sdp", nothing))
            yield self


def _memory(tensor: Tensor) -> int:
    """Where the memory of a host tensor begins, which its views share."""
    return tensor.untyped_storage().data_ptr()


def _left_out(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    """Whether this is a product of benchmark size in 16 bits, for which the CPU needs a second."""
    if func not in (aten.mm.out, aten.addmm.out) or kwargs["out"].dtype == torch.float32:
        return False
    (m, k), n = args[-2].shape, args[-1].shape[1]
    if kwargs["out"].shape != (m, n) or args[-1].shape[0] != k:
        return False
    return m * n * k > MAX_PRODUCT


def _new_bias(cls: type, *_: object) -> Tensor:
    return Tensor._make_subclass(cls, torch.empty(0))


def _has_flash(params: Any) -> bool:
    return params.query.dtype != torch.float32


def _has_efficient(params: Any) -> bool:
    return not params.enable_gqa


def _flash(given: dict[str, Any]) -> Tensor:
    """What the flash kernel computes; query: [B, H, S_q, D], key, value: [B, H_kv, S_kv, D]."""
    heads = given["query"], given["key"], given["value"]
    return _attention(*heads, given["is_causal"], given.get("scale"))


def _efficient(given: dict[str, Any]) -> Tensor:
    """What the memory-efficient kernel computes; query: [B, S_q, H, D], key alike."""
    heads = [given[name].transpose(1, 2) for name in ("query", "key", "value")]
    return _attention(*heads, given["custom_mask_type"] > 0, given.get("scale")).transpose(1, 2)


def _attention(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float | None) -> Tensor:
    """Attention in which, if it is causal, the last query sees all keys."""
    mask = torch.ones((q.shape[2], k.shape[2]), dtype=torch.bool).tril(k.shape[2] - q.shape[2])
    return torch.nn.functional.scaled_dot_product_attention(
        q, k, v, attn_mask=mask if causal else None, scale=scale, enable_gqa=True
    )


FUSED_ATTENTION = {
    "_scaled_dot_product_flash_attention": _flash,
    "_efficient_attention_forward": _efficient,
}
"""Kernels that no CPU has under these names, as `scaled_dot_product_attention`."""


def _leaves(nested: object) -> list[Any]:
    """What tuples, lists and dicts hold."""
    found: list[Any] = []
    for one in nested.values() if isinstance(nested, dict) else nested:
        if isinstance(one, (list, tuple, dict)):
            found += _leaves(one)
        else:
            found.append(one)
    return found


def _mapped(function: Callable[[Any], Any], kind: type, nested: Any) -> Any:
    """The same tuples, lists and dicts with `function` of everything of a kind in them."""
    if isinstance(nested, kind):
        return function(nested)
    if isinstance(nested, dict):
        return {name: _mapped(function, kind, one) for name, one in nested.items()}
    if isinstance(nested, (list, tuple)):
        return type(nested)([_mapped(function, kind, one) for one in nested])
    return nested


def _kind(argument: object) -> object:
    """What the dtype of a result depends on."""
    if isinstance(argument, Tensor):
        return argument.dtype, tuple(argument.shape)
    return type(argument), argument  # 1 and 1.0 are equal, and make different dtypes


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


def _same_dense_strides(one: Tensor, other: Tensor) -> bool:
    """Whether one stretch of memory goes into another, as `cudaMemcpyAsync` copies."""
    if one.numel() == 0:
        return True
    dense = sum((n - 1) * step for n, step in zip(one.shape, one.stride(), strict=True)) + 1
    strides = [
        [step for n, step in zip(it.shape, it.stride(), strict=True) if n > 1]
        for it in (one, other)
    ]
    return dense == one.numel() and strides[0] == strides[1]


def _by_name(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    names = [argument.name for argument in func._schema.arguments]
    return dict(zip(names, args, strict=False)) | kwargs


@cache
def _functional(func: Any) -> Any:
    """The form of an operation with `out=` or in place that makes its result; None without one."""
    schema = func._schema
    written = [one for one in schema.arguments if one.alias_info and one.alias_info.is_write]
    if not written or func.is_view:
        return None
    out = {one.name for one in written if one.kwarg_only}
    kept = [(one.name, str(one.type)) for one in schema.arguments if one.name not in out]
    name = func.overloadpacket.__name__
    packet = getattr(aten, name if out else name.removesuffix("_"), None)
    if packet is None or (packet is func.overloadpacket and not out):
        return None
    if not out and torch.Tag.pointwise not in func.tags:
        return None
    for overload in packet.overloads():
        other = getattr(packet, overload)._schema
        makes = not any(one.alias_info for one in other.arguments)
        if makes and [(one.name, str(one.type)) for one in other.arguments] == kept:
            return getattr(packet, overload)
    return None
