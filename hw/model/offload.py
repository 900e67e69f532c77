"""Layer weights that live in host memory and pass through two device slots (column schedule)."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from hw.backends import Backend
from hw.model.weights import Layer, Linear, Weights
from sim.graph.tasks import STAGING_SLOTS


class OffloadedLayers:
    """The matrices of every layer on the host, contiguous, in the order in which a slot holds them.

    A slot is one flat buffer: Q rows, K and V rows, then the output and MLP matrices. The K and V
    rows are copied alone, before the others. Norms and biases, under 0.1 %, stay on the device.

    Args:
        weights: on the device; their matrices are copied to the host.
    """

    def __init__(self, weights: Weights, backend: Backend) -> None:
        self.backend = backend
        self._layers = weights.layers
        first = _matrices(weights.layers[0], weights.model.q_size)
        self._shapes = [tuple(matrix.shape) for matrix in first]
        self._sizes = [matrix.numel() for matrix in first]
        dtype, total = first[0].dtype, sum(self._sizes)
        self._slots = [backend.device_empty((total,), dtype) for _ in range(STAGING_SLOTS)]
        self._host = [backend.host_empty((total,), dtype) for _ in weights.layers]
        for layer, host in zip(weights.layers, self._host, strict=True):
            flat = [matrix.reshape(-1) for matrix in _matrices(layer, weights.model.q_size)]
            host.copy_(torch.cat(flat))

    def load_kv_weights(self, layer: int, slot: int) -> None:
        """Copy the K and V rows of a layer into a slot."""
        rows = self._span(1, 2)
        self.backend.copy(self._slots[slot][rows], self._host[layer][rows])

    def load_weights(self, layer: int, slot: int) -> None:
        """Copy the other matrices of a layer into a slot."""
        for span in (self._span(0, 1), self._span(2, len(self._sizes))):
            self.backend.copy(self._slots[slot][span], self._host[layer][span])

    def layer(self, number: int, slot: int) -> Layer:
        """A layer whose matrices are those that the slot holds."""
        resident, buffer = self._layers[number], self._slots[slot]
        q, kv, out, *mlp = (
            buffer[self._span(at, at + 1)].view(shape) for at, shape in enumerate(self._shapes)
        )
        qkv = buffer[self._span(0, 2)].view(q.shape[0] + kv.shape[0], q.shape[1])
        gate = resident.gate and Linear(mlp.pop(0), resident.gate.bias)
        return replace(
            resident,
            qkv=Linear(qkv, resident.qkv.bias),
            out=Linear(out, resident.out.bias),
            gate=gate,
            up=Linear(mlp[0], resident.up.bias),
            down=Linear(mlp[1], resident.down.bias),
        )

    def _span(self, first: int, last: int) -> slice:
        """Elements of matrices `first` up to but without `last` in a slot."""
        return slice(sum(self._sizes[:first]), sum(self._sizes[:last]))


def _matrices(layer: Layer, q_size: int) -> list[Tensor]:
    """Matrices in slot order; Q and K/V are rows of the fused projection."""
    gate = [] if layer.gate is None else [layer.gate.weight]
    fused = layer.qkv.weight
    return [
        fused[:q_size],
        fused[q_size:],
        layer.out.weight,
        *gate,
        layer.up.weight,
        layer.down.weight,
    ]
