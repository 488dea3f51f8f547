"""ScoreModel: scores, samples and likelihoods of a model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fitkit.core.argument_checks import require_count, require_number
from fitkit.core.errors import ConfigurationError
from fitkit.generative import likelihood
from fitkit.generative.arguments import as_conditions, as_sample_shape, find_method
from fitkit.generative.components import GenerativeComponents
from fitkit.generative.guidance import guide_score
from fitkit.generative.sampling_progress import track_progress
from fitkit.generative.score_matching import DenoisingScoreMatching
from fitkit.runtime.device import resolve_device, to_device
from fitkit.runtime.rng import seeded_streams


class Evaluator(Protocol):
    """How a ``ScoreModel`` calls its model.

    Attributes:
        device: where the model is.
        shows_progress: whether this rank shows progress bars.
    """

    device: torch.device
    shows_progress: bool

    @property
    def dtype(self) -> torch.dtype:
        """The floating type of the model's weights."""

    def next_seed(self) -> int:
        """A seed for the next draw."""

    def evaluating(self, precision: str | None) -> AbstractContextManager[nn.Module]:
        """Inside ``with`` the model is in evaluation mode, with its averaged weights."""


class ScoreModel:
    """Draws and measures with a model and its SDE or sampler."""

    def __init__(self, components: GenerativeComponents, evaluator: Evaluator) -> None:
        self._components = components
        self._evaluator = evaluator

    def get_samples(
        self,
        n: int,
        device: torch.device | str | None = None,
        *,
        seed: int | None = None,
        **kwargs: Any,
    ) -> Any:
        """``n`` samples drawn by the sampler: ``sampler.sample(n, device, **kwargs)``.

        The model is in evaluation mode with its averaged weights, no gradients are recorded, and
        the global streams are seeded as for ``sample``.

        Args:
            n: number of samples, at least 1.
            device: where to draw; ``None``: the handler's device.
            seed: decides the samples; ``None``: the next of the handler's own seeds.
            **kwargs: further arguments of the sampler, such as ``model=handler.module``.
        """
        require_count("n", n)
        sampler = self._components.sampler
        if sampler is None:
            raise ConfigurationError(
                "no sampler is set: call set_sampler(...) before get_samples, or draw by the SDE "
                "with handler.sample(shape)."
            )
        where = self._evaluator.device if device is None else resolve_device(device)
        with self._drawing(seed, None, None, where), torch.no_grad():
            return sampler.sample(n, where, **kwargs)

    def score(self, t: Tensor | float, x: Tensor, *conditions: Tensor) -> Tensor:
        """The model's score: the gradient of the log-density of data with the noise of time ``t``.

        In evaluation mode, with the averaged weights if there are any, without gradients.

        Args:
            t: times in ``[0, 1]``, ``(batch,)`` or one for all.
            x: values ``(batch, ...)``.
            *conditions: further inputs of the model, ``(batch, ...)`` or ``(1, ...)``.

        Returns:
            a tensor shaped as ``x``, on the handler's device.
        """
        matching, device = self._matching("score"), self._evaluator.device
        x = to_device(x, device)
        times = torch.as_tensor(t, dtype=x.dtype, device=device).expand(len(x))
        given = as_conditions(to_device(conditions, device), len(x))
        with self._evaluator.evaluating(None) as model, torch.no_grad():
            return matching.score(model, times, x, *given)

    def sample(
        self,
        shape: Sequence[int],
        steps: int = 500,
        *,
        method: str = "euler_maruyama",
        conditions: Tensor | Sequence[Tensor] = (),
        guidance: float = 1.0,
        unconditional: Tensor | Sequence[Tensor] = (),
        seed: int | None = None,
        generator: torch.Generator | None = None,
        precision: str | None = None,
        progress_bar: bool = True,
        **options: Any,
    ) -> Tensor:
        """Samples drawn by the SDE, with the averaged weights if there are any.

        Seeds follow from the handler's seed and from the number of earlier draws, which checkpoints
        hold: a loaded handler draws what the saved one would have drawn. The random streams of the
        program and of training are restored. Every rank draws the same samples; there is no
        communication, except where the model itself does so.

        Args:
            shape: ``(samples, ...)``.
            steps: from noise to data, at least 1; the ODE solver chooses its own.
            method: ``"euler_maruyama"``; ``"predictor_corrector"`` with the options
                ``corrector_steps`` (1) and ``signal_to_noise`` (0.16); or ``"ode"``, the
                probability-flow ODE, with ``tolerance`` (1e-5), which needs scipy.
            conditions: further inputs of the model, ``(samples, ...)`` or ``(1, ...)``.
            guidance: classifier-free guidance: 1 for plain conditional samples, above 1 for a
                stronger effect of the conditions.
            unconditional: what replaces the conditions in the unconditional score of guidance;
                default: the model is called without any.
            seed: decides the samples; ``None``: the next of the handler's own seeds.
            generator: the seed is drawn from it instead.
            precision: as in ``fit``.
            progress_bar: whether to show one.
            **options: of the method.

        Raises:
            ConfigurationError: an argument cannot be used.
            SamplingError: values became NaN or infinite.
        """
        matching, size = self._matching("sample"), as_sample_shape(shape)
        draw = find_method(method, options)
        evaluator, device = self._evaluator, self._evaluator.device
        given = as_conditions(to_device(conditions, device), size[0])
        absent = as_conditions(to_device(unconditional, device), size[0], "unconditional")
        require_number("guidance", guidance)
        if method != "ode":
            require_count("steps", steps)
            options["steps"] = steps
        show = progress_bar and evaluator.shows_progress
        with (
            self._drawing(seed, generator, precision) as model,
            track_progress("Sample", options.get("steps"), show=show) as on_step,
            torch.no_grad(),
        ):
            score = guide_score(_score_of(matching, model), given, absent, guidance)
            x = matching.sde.prior_sample(size, device=device, dtype=evaluator.dtype)
            samples: Tensor = draw(matching.sde, score, x, on_step, **options)
        return samples

    def log_likelihood(
        self,
        x: Tensor,
        *,
        conditions: Tensor | Sequence[Tensor] = (),
        num_probes: int | None = 1,
        tolerance: float = 1e-5,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        precision: str | None = None,
        progress_bar: bool = True,
    ) -> Tensor:
        """The log-density of each of ``x`` under the model, in nats, by the probability-flow ODE.

        It needs scipy. The density is that of data with the noise of the SDE's smallest time.

        Args:
            x: data ``(batch, ...)``.
            conditions: further inputs of the model, ``(batch, ...)`` or ``(1, ...)``.
            num_probes: random probes of Hutchinson's estimator, each a backward pass; the estimate
                is unbiased. ``None``: the exact value, by a backward pass for each dimension.
            tolerance: relative and absolute error of each step of the solver.
            seed: decides the probes; ``None``: the next of the handler's own seeds.
            generator: the seed is drawn from it instead.
            precision: as in ``fit``.
            progress_bar: whether to show one.

        Returns:
            a tensor ``(batch,)`` on the handler's device.

        Raises:
            ConfigurationError: an argument cannot be used.
            SamplingError: values became NaN or infinite.
        """
        matching = self._matching("log_likelihood")
        require_count("num_probes", num_probes, optional=True)
        as_sample_shape(x.shape)
        evaluator, device = self._evaluator, self._evaluator.device
        x = to_device(x.detach(), device).to(evaluator.dtype)
        given = as_conditions(to_device(conditions, device), len(x))
        show = progress_bar and evaluator.shows_progress
        with (
            self._drawing(seed, generator, precision) as model,
            track_progress("Likelihood", None, show=show) as on_step,
        ):
            score = guide_score(_score_of(matching, model), given, (), 1.0)
            return likelihood.log_likelihood(
                matching.sde, score, x, on_step, num_probes=num_probes, tolerance=tolerance
            )

    def _matching(self, verb: str) -> DenoisingScoreMatching:
        if self._components.matching is None:
            raise ConfigurationError(f"no SDE is set: call set_sde(...) before {verb}.")
        return self._components.matching

    @contextmanager
    def _drawing(
        self,
        seed: int | None,
        generator: torch.Generator | None,
        precision: str | None,
        device: torch.device | None = None,
    ) -> Iterator[nn.Module]:
        """Inside ``with`` the random streams are those of one draw, and the model is evaluated."""
        if seed is not None and generator is not None:
            raise ConfigurationError("seed and generator were both given: pass one of them.")
        if generator is not None:
            drawn = torch.randint(2**63 - 1, (), generator=generator, device=generator.device)
            seed = int(drawn.item())
        if seed is None:
            seed = self._evaluator.next_seed()
        require_count("seed", seed, minimum=0)
        where = self._evaluator.device if device is None else device
        with seeded_streams(seed, where), self._evaluator.evaluating(precision) as model:
            yield model


def _score_of(matching: DenoisingScoreMatching, model: nn.Module) -> Any:
    return lambda t, x, *conditions: matching.score(model, t, x, *conditions)
