"""GenerativeComponents: SDE and sampler of a handler, as described and as built."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fitkit.core.component_spec import ComponentSpec
from fitkit.core.errors import ConfigurationError
from fitkit.generative.sampler import Sampler
from fitkit.generative.score_matching import DenoisingScoreMatching
from fitkit.generative.sde import SDE


class GenerativeComponents:
    """SDE and sampler of one handler.

    Attributes:
        sde_spec: class and arguments of the SDE.
        matching: the loss that trains the model as the SDE's score; ``None``: no SDE is set.
        sampler_spec: class and arguments of the sampler, ``None`` for a ready one.
        sampler: the sampler, or ``None``.
    """

    def __init__(self) -> None:
        self.sde_spec: ComponentSpec | None = None
        self.matching: DenoisingScoreMatching | None = None
        self.sampler_spec: ComponentSpec | None = None
        self.sampler: Sampler | None = None

    @property
    def sde(self) -> SDE | None:
        """The SDE, once set."""
        return None if self.matching is None else self.matching.sde

    def set_sde(
        self,
        cls: type[Any],
        kwargs: Mapping[str, Any],
        *,
        divide_by_std: bool,
        likelihood_weighting: bool,
    ) -> None:
        """Build the SDE, and the loss that trains the model as its score."""
        if not (isinstance(cls, type) and issubclass(cls, SDE)):
            raise ConfigurationError(
                f"set_sde expects an SDE class such as fitkit.generative.VPSDE, received {cls!r}: "
                f"pass the class and its arguments."
            )
        spec = ComponentSpec(cls, dict(kwargs))
        self.matching = DenoisingScoreMatching(spec.build(), divide_by_std, likelihood_weighting)
        self.sde_spec = spec

    def set_sampler(self, sampler: Any, kwargs: Mapping[str, Any]) -> None:
        """Build the sampler, or take a ready one."""
        spec = ComponentSpec(sampler, dict(kwargs)) if isinstance(sampler, type) else None
        if spec is None and kwargs:
            raise ConfigurationError(
                "set_sampler received a ready sampler and further arguments: pass its class, or "
                "leave the arguments out."
            )
        built = sampler if spec is None else spec.build()
        if not isinstance(built, Sampler):
            raise ConfigurationError(
                f"a sampler needs the methods sample(n, device, **kwargs), state_dict() and "
                f"load_state_dict(state), which {type(built).__name__} does not all have."
            )
        self.sampler, self.sampler_spec = built, spec
