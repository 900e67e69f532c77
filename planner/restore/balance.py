"""Start values for the search: the split at which compute and link take equally long.

The time is at least the work of the compute lane and at least the work of the slowest copy engine.
Both are linear in the numbers of computed steps and projected tokens. For each number of computed
cells the best number of projected tokens is at the crossing of the two lines or at an end, and
trying every number of cells finds the optimum. The computed tokens are the first ones, because a
step at the front attends to fewer tokens than any later step.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import fsum, inf
from operator import mul

from sim.cost.restore import RestoreCosts
from sim.graph.jobs import RestoreRequest
from sim.lanes import H2D, LANE_OF_TIER
from sim.machine.profile import HardwareProfile
from sim.model.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class Balance:
    """Counts, with a lower bound on their time.

    Args:
        cells: computed steps times layers, step after step.
        projected: tokens, summed over layers, whose X is loaded.
    """

    bound_s: float
    cells: int
    projected: int


class Rates:
    """Seconds that one restore spends on each kind of work on one machine.

    `step_s[i]` is the mean time to compute one layer of step i, `needed[j]` the number of cached
    tokens that layer j needs; `project_s`, `kv_s` and `x_s` are the
    times to project, to load K and V and to load X, each for one token in one layer.

    Args:
        has_x: whether X is cached; otherwise `x_s` is infinite.
    """

    def __init__(
        self,
        model: ModelSpec,
        hardware: HardwareProfile,
        request: RestoreRequest,
        has_x: bool,
    ) -> None:
        costs = RestoreCosts(hardware, model, request)
        self.layers = model.n_layers
        self.request = request
        cached, size = request.cached_tokens, request.step_tokens
        self.stops: list[int] = [0, *range(size, cached, size), cached]
        alike = [(model.kind_of[layer], model.window(layer)) for layer in range(self.layers)]
        examples = {one: layer for layer, one in enumerate(alike)}
        counts = Counter(alike)
        parts = [counts[one] / self.layers for one in examples]

        def layer_s(start: int, n_tokens: int) -> float:
            each = [costs.prefill(start, n_tokens, 1, one).seconds for one in examples.values()]
            return fsum(map(mul, each, parts)) / fsum(parts)

        self.step_s = [layer_s(start, stop - start) for start, stop in pairwise(self.stops)]
        self.step_sum_s: list[float] = [0.0, *accumulate(self.step_s)]
        self.uncached_s = sum(
            layer_s(start, min(size, request.prompt_tokens - start))
            for start in range(cached, request.prompt_tokens, size)
        )
        many = min(cached, 1024)
        projecting = [layer for layer in range(self.layers) if model.projects(layer)]
        has_x = has_x and bool(projecting)
        kind = model.kind_of[projecting[-1]] if projecting else -1
        projected_s = (
            costs.operations.compute("recompute", many, many, kind).seconds if has_x else 0.0
        )
        self.project_s = projected_s / many / request.gpu_share
        lanes = [H2D, *filter(None, [LANE_OF_TIER.get(request.tier)])]
        chunk = request.io_chunk_tokens * self.layers
        self.needed = [cached - first for first in costs.loads.firsts]
        all_bytes = request.kv_bytes(model) + request.index_bytes(model)
        kv_bytes = chunk * (all_bytes + model.state_bytes) // sum(self.needed)
        x_bytes = chunk * model.x_token_bytes
        self.kv_s = max(costs.copy_s(lane, kv_bytes) for lane in lanes) / chunk
        self.x_s = max(costs.copy_s(lane, x_bytes) for lane in lanes) / chunk if has_x else inf
        self.found_s = costs.lookup_s
        self.from_x = [
            count if model.projects(layer) else 0 for layer, count in enumerate(self.needed)
        ]
        self._left = [sum(min(one, cached - stop) for one in self.needed) for stop in self.stops]

    def computed_s(self, cells: int) -> float:
        """All layers of the first steps, and the first layers of the next."""
        steps, layers = divmod(cells, self.layers)
        whole: float = self.layers * self.step_sum_s[steps]
        return whole + (layers * self.step_s[steps] if layers else 0.0)

    def left_tokens(self, cells: int) -> int:
        """Tokens, summed over layers, that are needed besides those of this many computed cells."""
        steps, layers = divmod(cells, self.layers)
        left = self._left[steps]
        return left - (layers * (left - self._left[steps + 1]) // self.layers if layers else 0)

    @property
    def all_cells(self) -> int:
        return self.layers * len(self.step_s)

    def balance(self, cells: int, by_layer: bool) -> Balance:
        """The best number of projected tokens for this many computed cells."""
        left = self.left_tokens(cells)
        compute_s = self.computed_s(cells) + self.layers * self.uncached_s
        link_s = self.found_s + left * self.kv_s if left else 0.0
        link_s += self.uncached_s * (1 if by_layer else self.layers)
        gain_s = self.kv_s - self.x_s
        projected = 0
        if by_layer and gain_s > 0 and link_s > compute_s:
            projected = min(left, int((link_s - compute_s) / (gain_s + self.project_s)))
        saved_s = projected * gain_s if projected else 0.0
        bound_s = max(compute_s + projected * self.project_s, link_s - saved_s)
        return Balance(bound_s, cells, projected)

    def best(self, cells: range, by_layer: bool) -> Balance:
        """The smallest bound over these numbers of cells; the fewest cells if equal."""
        return min((self.balance(count, by_layer) for count in cells), key=lambda one: one.bound_s)

    def best_layers(self) -> tuple[int, int]:
        """(computed, projected) numbers of layers for a layer-wise split."""
        found = []
        uncached_s = self.layers * self.uncached_s
        rows = [0, *accumulate(self.needed)]
        with_x = [0, *accumulate(self.from_x)]
        for computed in range(self.layers + 1):
            left = self.layers - computed
            compute_s = computed * self.step_sum_s[-1] + uncached_s
            for projected in range(left + 1 if self.x_s < self.kv_s else 1):
                from_x = with_x[computed + projected] - with_x[computed]
                link_s = (rows[-1] - rows[computed] - from_x) * self.kv_s
                link_s += from_x * self.x_s if from_x else 0.0
                link_s += self.found_s + self.uncached_s if left else 0.0
                bound_s = max(compute_s + from_x * self.project_s, link_s)
                found.append((bound_s, computed, projected))
        return min(found)[1:]
