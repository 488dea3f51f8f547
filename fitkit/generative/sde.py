"""SDE: diffusion processes from data to noise, in closed form.

Each is ``dx = f(t, x) dt + g(t) dw`` for ``t`` from 0 (data) to 1, with Gaussian marginals
``x_t ~ N(mean_scale(t) x_0, std(t)^2 I)`` and a Gaussian prior close to the marginal at 1. The
three here are those of Song et al. 2021, "Score-Based Generative Modeling through Stochastic
Differential Equations" (arXiv:2011.13456), section 3.4 and appendix B.

Times are tensors ``(batch,)``, or scalars for the whole batch; values are ``(batch, ...)``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fitkit.core.argument_checks import require_number
from fitkit.core.errors import ConfigurationError


def expand(t: Tensor, x: Tensor) -> Tensor:
    """Reshape ``t``, ``(batch,)`` or ``()``, to broadcast with ``x``, ``(batch, ...)``."""
    return t.reshape(-1, *[1] * (x.ndim - 1)) if t.ndim else t


class SDE(ABC):
    """A process from data at time 0 to noise at time 1.

    A subclass defines ``drift``, ``diffusion``, ``mean_scale`` and ``std``, and ``prior_std`` where
    it is not 1. A checkpoint has its arguments and its ``state_dict``.

    Args:
        smallest_time: in ``(0, 1)``; training, sampling and likelihoods stop there, because the
            score of data without noise need not exist.

    Raises:
        ConfigurationError: the time is out of range.
    """

    end_time = 1.0

    def __init__(self, smallest_time: float = 1e-3) -> None:
        require_number("smallest_time", smallest_time)
        if not 0.0 < smallest_time < self.end_time:
            raise ConfigurationError(
                f"smallest_time must lie in (0, 1), received {smallest_time!r}."
            )
        self.smallest_time = float(smallest_time)

    @abstractmethod
    def drift(self, t: Tensor, x: Tensor) -> Tensor:
        """``f(t, x)``, shaped as ``x``."""

    @abstractmethod
    def diffusion(self, t: Tensor) -> Tensor:
        """``g(t)``, shaped as ``t``."""

    @abstractmethod
    def mean_scale(self, t: Tensor) -> Tensor:
        """``E[x_t | x_0] / x_0``, shaped as ``t``."""

    @abstractmethod
    def std(self, t: Tensor) -> Tensor:
        """The standard deviation of ``x_t`` given ``x_0``, 0 at time 0, shaped as ``t``."""

    @property
    def prior_std(self) -> float:
        """The standard deviation of the prior, whose mean is 0."""
        return 1.0

    def marginal(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of ``x_t`` given ``x_0 = x``; they broadcast."""
        return expand(self.mean_scale(t), x) * x, expand(self.std(t), x)

    def prior_sample(
        self,
        shape: Sequence[int],
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draw from the prior, in ``shape`` ``(batch, ...)``; default: with torch's generator."""
        size = tuple(shape)
        return self.prior_std * torch.randn(size, generator=generator, device=device, dtype=dtype)

    def prior_log_density(self, x: Tensor) -> Tensor:
        """The log-density of the prior at each of ``x``, in nats, of shape ``(batch,)``."""
        flat = x.flatten(1)
        constant = flat.shape[1] * (0.5 * math.log(2 * math.pi) + math.log(self.prior_std))
        return -0.5 * (flat / self.prior_std).square().sum(1) - constant

    def state_dict(self) -> dict[str, Any]:
        """State besides the arguments: empty, unless a subclass overrides it."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:  # noqa: B027  optional
        """Load what ``state_dict`` returned."""


class _LinearBeta(SDE):
    """The drift of VP and sub-VP: ``f = -beta(t) x / 2`` with ``beta`` rising linearly."""

    def __init__(
        self, beta_min: float = 0.1, beta_max: float = 20.0, smallest_time: float = 1e-3
    ) -> None:
        super().__init__(smallest_time)
        _require_rising("beta_min", beta_min, "beta_max", beta_max)
        self.beta_min, self.beta_max = float(beta_min), float(beta_max)

    def beta(self, t: Tensor) -> Tensor:
        """``beta(t)``, shaped as ``t``."""
        return self.beta_min + t * (self.beta_max - self.beta_min)

    def drift(self, t: Tensor, x: Tensor) -> Tensor:
        """``-beta(t) x / 2``, shaped as ``x``."""
        return -0.5 * expand(self.beta(t), x) * x

    def _integral_of_beta(self, t: Tensor) -> Tensor:
        """The integral of ``beta`` from 0 to ``t``."""
        return t * self.beta_min + 0.5 * t.square() * (self.beta_max - self.beta_min)

    def mean_scale(self, t: Tensor) -> Tensor:
        """``exp(-integral of beta / 2)``, shaped as ``t``."""
        return torch.exp(-0.5 * self._integral_of_beta(t))


class VPSDE(_LinearBeta):
    """The variance-preserving process, the limit of DDPM: Song et al. 2021, equations 11 and 29.

    ``dx = -beta(t) x / 2 dt + sqrt(beta(t)) dw``; data of variance 1 keeps it.

    Args:
        beta_min: ``beta(0)``, above 0.
        beta_max: ``beta(1)``, at least ``beta_min``.
        smallest_time: as in ``SDE``.
    """

    def diffusion(self, t: Tensor) -> Tensor:
        """``sqrt(beta(t))``, shaped as ``t``."""
        return self.beta(t).sqrt()

    def std(self, t: Tensor) -> Tensor:
        """``sqrt(1 - exp(-integral of beta))``, shaped as ``t``."""
        return (-torch.expm1(-self._integral_of_beta(t))).sqrt()


class SubVPSDE(_LinearBeta):
    """The sub-VP process, whose variance is never above that of VP: Song et al. 2021, equation 12.

    ``dx = -beta(t) x / 2 dt + sqrt(beta(t) (1 - exp(-2 integral of beta))) dw``. The arguments are
    those of ``VPSDE``.
    """

    def diffusion(self, t: Tensor) -> Tensor:
        """``sqrt(beta(t) (1 - exp(-2 integral of beta)))``, shaped as ``t``."""
        return (self.beta(t) * -torch.expm1(-2 * self._integral_of_beta(t))).sqrt()

    def std(self, t: Tensor) -> Tensor:
        """``1 - exp(-integral of beta)``, shaped as ``t``."""
        return -torch.expm1(-self._integral_of_beta(t))


class VESDE(SDE):
    """The variance-exploding process, the limit of SMLD: Song et al. 2021, equations 9, 29 and 30.

    ``dx = sigma(t) sqrt(2 log(sigma_max / sigma_min)) dw`` with ``sigma(t)`` rising geometrically
    from ``sigma_min`` to ``sigma_max``; the mean stays.

    Args:
        sigma_min: ``sigma(0)``, above 0: small against the details of the data.
        sigma_max: ``sigma(1)``: as large as the largest distance between two samples of the data
            (Song and Ermon 2020, arXiv:2006.09011, technique 1).
        smallest_time: as in ``SDE``.
    """

    def __init__(
        self, sigma_min: float = 0.01, sigma_max: float = 50.0, smallest_time: float = 1e-5
    ) -> None:
        super().__init__(smallest_time)
        _require_rising("sigma_min", sigma_min, "sigma_max", sigma_max)
        if sigma_min == sigma_max:
            raise ConfigurationError(
                f"sigma_max must be above sigma_min, received {sigma_max!r} for both."
            )
        self.sigma_min, self.sigma_max = float(sigma_min), float(sigma_max)
        self._log_ratio = math.log(self.sigma_max / self.sigma_min)

    def drift(self, t: Tensor, x: Tensor) -> Tensor:
        """0, shaped as ``x``."""
        return torch.zeros_like(x)

    def diffusion(self, t: Tensor) -> Tensor:
        """``sigma(t) sqrt(2 log(sigma_max / sigma_min))``, shaped as ``t``."""
        return self.sigma_min * torch.exp(t * self._log_ratio) * math.sqrt(2 * self._log_ratio)

    def mean_scale(self, t: Tensor) -> Tensor:
        """1, shaped as ``t``."""
        return torch.ones_like(t)

    def std(self, t: Tensor) -> Tensor:
        """``sqrt(sigma(t)^2 - sigma(0)^2)``, shaped as ``t``."""
        return self.sigma_min * torch.expm1(2 * t * self._log_ratio).sqrt()

    @property
    def prior_std(self) -> float:
        """``sigma_max``."""
        return self.sigma_max


def _require_rising(low_name: str, low: Any, high_name: str, high: Any) -> None:
    require_number(low_name, low)
    require_number(high_name, high)
    if not 0 < low <= high:
        raise ConfigurationError(
            f"{low_name} must be above 0 and at most {high_name}, received {low!r} and {high!r}."
        )
