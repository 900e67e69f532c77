"""Layer weights that live in host memory and pass through two device slots (column schedule)."""

from __future__ import annotations

import torch
from torch import Tensor

from hw.backends import Backend
from hw.model.weights import Layer, Weights, matrices, with_matrices
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
        self._kv = _kv_elements(weights)
        sizes = [sum(matrix.numel() for matrix in matrices(layer)) for layer in weights.layers]
        dtype = weights.embed.dtype
        self._slots = [backend.device_empty((max(sizes),), dtype) for _ in range(STAGING_SLOTS)]
        self._host = [backend.host_empty((size,), dtype) for size in sizes]
        for layer, host in zip(weights.layers, self._host, strict=True):
            host.copy_(torch.cat([matrix.reshape(-1) for matrix in matrices(layer)]))

    def load_kv_weights(self, layer: int, slot: int) -> None:
        """Copy the K and V rows of a layer into a slot."""
        self._load(layer, slot, self._kv)

    def load_weights(self, layer: int, slot: int) -> None:
        """Copy the other matrices of a layer into a slot."""
        size = self._host[layer].numel()
        self._load(layer, slot, slice(0, self._kv.start))
        self._load(layer, slot, slice(self._kv.stop, size))

    def _load(self, layer: int, slot: int, span: slice) -> None:
        self.backend.copy(self._slots[slot][span], self._host[layer][span])

    def layer(self, number: int, slot: int) -> Layer:
        """A layer whose matrices are those that the slot holds."""
        resident = self._layers[number]
        shapes = [matrix.shape for matrix in matrices(resident)]
        sizes = [shape.numel() for shape in shapes]
        parts = self._slots[slot][: sum(sizes)].split(sizes)
        views: list[Tensor] = [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]
        return with_matrices(resident, iter(views))


def _kv_elements(weights: Weights) -> slice:
    """Elements of a layer's matrices that make K and V: rows of the first one, behind Q's."""
    model = weights.model
    first = model.q_size if model.mla is None else 0
    stop = first + model.kv_token_size
    return slice(first * model.hidden_size, stop * model.hidden_size)
