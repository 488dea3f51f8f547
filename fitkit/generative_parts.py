"""What a handler draws with: SDE and sampler, as described and as built."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fitkit.core.errors import ConfigurationError
from fitkit.generative.sampler import Sampler
from fitkit.generative.score_matching import DenoisingScoreMatching
from fitkit.generative.sde import SDE
from fitkit.parts import Described


class GenerativeParts:
    """SDE and sampler of one handler.

    Attributes:
        sde_spec: class and arguments of the SDE.
        matching: the SDE with how the model's output is its score; ``None``: no SDE is set.
        sampler_spec: class and arguments of the sampler, ``None`` for a ready one.
        sampler: the sampler, or ``None``.
        draws: how often samples were drawn; each draw's seed is a function of it.
        waiting: what a checkpoint holds of a part that is yet to be set.
    """

    def __init__(self) -> None:
        self.sde_spec: Described | None = None
        self.matching: DenoisingScoreMatching | None = None
        self.sampler_spec: Described | None = None
        self.sampler: Sampler | None = None
        self.draws = 0
        self.waiting: dict[str, dict[str, Any]] = {}

    @property
    def sde(self) -> SDE | None:
        """The process, once set."""
        return None if self.matching is None else self.matching.sde

    def set_sde(
        self,
        cls: type[Any],
        kwargs: Mapping[str, Any],
        *,
        divide_by_std: bool,
        likelihood_weighting: bool,
    ) -> None:
        """Build the SDE."""
        if not (isinstance(cls, type) and issubclass(cls, SDE)):
            raise ConfigurationError(
                f"set_sde expects an SDE class such as fitkit.generative.VPSDE, received {cls!r}: "
                f"pass the class and its arguments."
            )
        spec = Described(cls, dict(kwargs))
        self.matching = DenoisingScoreMatching(spec.build(), divide_by_std, likelihood_weighting)
        self.sde_spec = spec

    def set_sampler(self, sampler: Any, kwargs: Mapping[str, Any]) -> None:
        """Build the sampler, or take a ready one."""
        spec = Described(sampler, dict(kwargs)) if isinstance(sampler, type) else None
        if spec is None and kwargs:
            raise ConfigurationError(
                "the sampler is ready, so it takes no further arguments: pass its class, or leave "
                "them out."
            )
        found = sampler if spec is None else spec.build()
        if not isinstance(found, Sampler):
            raise ConfigurationError(
                f"a sampler needs the methods sample(n, device, **kwargs), state_dict() and "
                f"load_state_dict(state), which {type(found).__name__} does not have all."
            )
        self.sampler, self.sampler_spec = found, spec
