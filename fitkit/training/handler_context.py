"""HandlerContext: weights, buffers, ranks and random streams of a handler's passes over data."""

from __future__ import annotations

from fitkit.core.errors import ConfigurationError
from fitkit.handler.base_handler import BaseHandler
from fitkit.metrics.ranks import Ranks
from fitkit.runtime.rng import derive_seed, seed_streams


class HandlerContext:
    """The ``EvaluationContext`` of a handler.

    With ``seeds_batches`` ranks other than 0 seed their streams for each batch, as a function of
    the position in the run: their streams then need not be saved.
    """

    def __init__(self, handler: BaseHandler, *, seeds_batches: bool = False) -> None:
        self._handler = handler
        self.ranks: Ranks = handler.data_world
        self._seeds_batches = seeds_batches and handler.data_world.rank > 0
        if seeds_batches and self.ranks is not handler.world and handler.seeds.given is None:
            raise ConfigurationError(
                "ranks that compute a batch together must draw the same random numbers: pass "
                "seed= to NNHandler or to fit."
            )
        self.ema_weights = handler.weights.swapped_in

    def sync_buffers(self) -> None:
        """Copy running statistics from rank 0, which are also those that are saved."""
        self._handler.world.copy_from_main(self._handler.parts.trained_modules.buffers())

    def seed_batch(self) -> None:
        """Seed the random streams for the next batch."""
        if self._seeds_batches:
            handler, state = self._handler, self._handler.state
            position: tuple[int | str, ...] = (state.global_step, state.phase.value, state.batch)
            if state.evaluation_set:
                position += (state.evaluation_set,)
            seed = derive_seed(handler.seeds.data, "rank", handler.data_world.rank, *position)
            seed_streams(seed, handler.device)
