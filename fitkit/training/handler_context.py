"""HandlerContext: weights, buffers, ranks and random streams of a handler's passes over data."""

from __future__ import annotations

from fitkit.core.errors import ConfigurationError
from fitkit.handler.base_handler import BaseHandler
from fitkit.metrics.ranks import Ranks
from fitkit.runtime.rng import derive_seed, seed_streams


class HandlerContext:
    """The ``EvaluationContext`` of a handler.

    With ``seeds_ranks`` ranks other than 0 have random streams of their own.
    """

    def __init__(self, handler: BaseHandler, *, seeds_ranks: bool = False) -> None:
        self._handler = handler
        self.ranks: Ranks = handler.data_world
        self._is_seeded = seeds_ranks and handler.data_world.rank > 0
        if seeds_ranks and self.ranks is not handler.world and handler.seeds.given is None:
            raise ConfigurationError(
                "ranks that compute a batch together must draw the same random numbers: pass "
                "seed= to NNHandler or to fit."
            )
        self.ema_weights = handler.weights.swapped_in

    def sync_buffers(self) -> None:
        """Copy running statistics from rank 0, which are also those that are saved."""
        self._handler.world.copy_from_main(self._handler.parts.trained_modules.buffers())

    def seed_rank(self) -> None:
        """Seed the random streams, as a function of the rank and the step."""
        if self._is_seeded:
            handler = self._handler
            step, rank = handler.state.global_step, handler.data_world.rank
            seed_streams(derive_seed(handler.seeds.data, "rank", rank, step), handler.device)
