"""GenerativeHandler: the verbs of score-based models and of samplers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fitkit.core.checks import require_count, require_number
from fitkit.core.errors import ConfigurationError
from fitkit.core.types import ModelType
from fitkit.engine.evaluation import evaluation_mode
from fitkit.evaluating import evaluation_run
from fitkit.generative import likelihood
from fitkit.generative.arguments import as_conditions, checked_shape, method_of
from fitkit.generative.guidance import guided
from fitkit.generative.sampler import Sampler
from fitkit.generative.score_matching import DenoisingScoreMatching
from fitkit.generative.sde import SDE
from fitkit.generative.watching import watched
from fitkit.generative_state import give_state
from fitkit.handler_view import HandlerView
from fitkit.runtime.device import floating_dtype, resolve_device, to_device
from fitkit.runtime.rng import derive_seed, seeded_streams


class GenerativeHandler(HandlerView):
    """What a handler can do with an SDE or a sampler; docs/generative.md shows it."""

    def set_sde(
        self,
        cls: type[SDE],
        *,
        divide_by_std: bool = True,
        likelihood_weighting: bool = False,
        **kwargs: Any,
    ) -> None:
        """Make the model the score of data under ``cls(**kwargs)``; ``fit`` trains it as that.

        The model is called as ``model(t, x, *conditions)``, with times of shape ``(batch,)``, and
        returns a tensor shaped as ``x``. Unless ``set_loss_fn`` is called, the loss is denoising
        score matching.

        Args:
            cls: ``VPSDE``, ``VESDE``, ``SubVPSDE`` or another SDE of ``fitkit.generative``.
            divide_by_std: the score is the model's output divided by the marginal standard
                deviation at ``t``; ``False``: the output is the score.
            likelihood_weighting: weight times as ``DenoisingScoreMatching`` says.
            **kwargs: arguments of the class.

        Raises:
            ConfigurationError: the handler's model is not score-based, or an argument is wrong.
        """
        if self.parts.model_type is not ModelType.SCORE_BASED:
            raise ConfigurationError(
                f"set_sde needs a handler with model_type='score_based', this one's is "
                f"{self.parts.model_type.value!r}."
            )
        self.generative.set_sde(
            cls, kwargs, divide_by_std=divide_by_std, likelihood_weighting=likelihood_weighting
        )
        give_state(self.generative)
        self.parts.set_default_loss(self.generative.matching)

    @property
    def sde(self) -> SDE | None:
        """The process, once set."""
        return self.generative.sde

    @property
    def sampler(self) -> Sampler | None:
        """The sampler, once set."""
        return self.generative.sampler

    def set_sampler(self, sampler: type[Sampler] | Sampler, **kwargs: Any) -> None:
        """Draw with a sampler of one's own in ``get_samples``.

        Args:
            sampler: a class with the methods of ``fitkit.generative.Sampler``, built with
                ``kwargs``; or a ready one, which a loaded handler must be given again.
            **kwargs: arguments of the class.
        """
        self.generative.set_sampler(sampler, kwargs)
        give_state(self.generative)

    def get_samples(
        self,
        n: int,
        device: torch.device | str | None = None,
        *,
        seed: int | None = None,
        **kwargs: Any,
    ) -> Any:
        """``n`` samples of the sampler, ``sampler.sample(n, device, **kwargs)``.

        Meanwhile the model is in evaluation mode with its averaged weights, no gradients are
        recorded, and the global streams are seeded as by ``sample``.

        Args:
            n: how many, at least 1.
            device: where; ``None``: the handler's.
            seed: decides the samples; ``None``: the next of the handler's own.
            **kwargs: further arguments of the sampler, such as ``model=handler.module``.
        """
        require_count("n", n)
        sampler = self.generative.sampler
        if sampler is None:
            raise ConfigurationError(
                "no sampler is set: call set_sampler(...) before get_samples; by an SDE draw with "
                "handler.sample(shape)."
            )
        where = self.device if device is None else resolve_device(device)
        with self._drawing(seed, None, None, where), torch.no_grad():
            return sampler.sample(n, where, **kwargs)

    def score(self, t: Tensor | float, x: Tensor, *conditions: Tensor) -> Tensor:
        """The model's score at ``x``: the gradient of the log-density of data noised up to ``t``.

        By the averaged weights if there are any, in evaluation mode, without recording gradients.

        Args:
            t: times in ``[0, 1]``, ``(batch,)`` or one for all.
            x: values ``(batch, ...)``.
            *conditions: what else the model takes, ``(batch, ...)`` or ``(1, ...)``.

        Returns:
            a tensor shaped as ``x``, on the handler's device.
        """
        matching = self._matching("score")
        x = to_device(x, self.device)
        times = torch.as_tensor(t, dtype=x.dtype, device=self.device).expand(len(x))
        given = as_conditions(to_device(conditions, self.device), len(x))
        with self._evaluating(None) as model, self.parallel.without_gradients():
            found = matching.score(model, times, x, *given)
        return found.clone()

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
        """Samples of the model, drawn by its SDE with the averaged weights if there are any.

        Draws follow from the handler's seed and from how many there were before, which a checkpoint
        holds: a loaded handler draws what the saved one would have drawn. The program's and the
        run's random streams are left as they were. Of several processes each draws by itself, and
        they draw the same; nothing is exchanged, except where the model itself does so.

        Args:
            shape: ``(samples, ...)``.
            steps: from noise to data, at least 1; the ODE solver chooses its own.
            method: ``"euler_maruyama"``; ``"predictor_corrector"`` with the options
                ``corrector_steps`` (1) and ``signal_to_noise`` (0.16); or ``"ode"``, the
                probability-flow ODE, with ``tolerance`` (1e-5), which needs scipy.
            conditions: what else the model is called with, ``(samples, ...)`` or ``(1, ...)``.
            guidance: classifier-free guidance: 1 for plain conditional samples, above 1 for a
                stronger effect of the conditions.
            unconditional: what stands for the conditions where the model is to know none of them;
                by default it is called without any.
            seed: decides the samples; ``None``: the next of the handler's own.
            generator: gives the seed instead.
            precision: as in ``fit``.
            progress_bar: show one.
            **options: of the method.

        Raises:
            ConfigurationError: an argument cannot be used.
            SamplingError: values became NaN or infinite.
        """
        matching, size = self._matching("sample"), checked_shape(shape)
        draw = method_of(method, options)
        given = as_conditions(to_device(conditions, self.device), size[0])
        absent = as_conditions(to_device(unconditional, self.device), size[0], "unconditional")
        require_number("guidance", guidance)
        if method != "ode":
            require_count("steps", steps)
            options["steps"] = steps
        title, total, show = "Sample", options.get("steps"), progress_bar and self._world.is_main
        with (
            self._drawing(seed, generator, precision) as model,
            watched(title, total, show=show) as watch,
            self.parallel.without_gradients(),
        ):
            score = guided(_score_of(matching, model), given, absent, guidance)
            dtype = floating_dtype(self.module)
            x = matching.sde.prior_sample(size, device=self.device, dtype=dtype)
            found: Tensor = draw(matching.sde, score, x, watch, **options)
        return found.clone()

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

        Needs scipy. It is the density of data with the noise of the SDE's smallest time.

        Args:
            x: data ``(batch, ...)``.
            conditions: what else the model is called with, ``(batch, ...)`` or ``(1, ...)``.
            num_probes: random probes of Hutchinson's estimator, each a backward pass; the estimate
                is unbiased. ``None``: the exact value, by a backward pass for each dimension.
            tolerance: relative and absolute error of each step of the solver.
            seed: decides the probes; ``None``: the next of the handler's own.
            generator: gives the seed instead.
            precision: as in ``fit``.
            progress_bar: show one.

        Returns:
            a tensor ``(batch,)`` on the handler's device.

        Raises:
            ConfigurationError: an argument cannot be used.
            SamplingError: values became NaN or infinite.
        """
        matching = self._matching("log_likelihood")
        require_count("num_probes", num_probes, optional=True)
        checked_shape(x.shape)
        x = to_device(x.detach(), self.device).to(floating_dtype(self.module))
        given = as_conditions(to_device(conditions, self.device), len(x))
        show = progress_bar and self._world.is_main
        with (
            self._drawing(seed, generator, precision) as model,
            watched("Likelihood", None, show=show) as watch,
        ):
            score = guided(_score_of(matching, model), given, (), 1.0)
            return likelihood.log_likelihood(
                matching.sde, score, x, watch, num_probes=num_probes, tolerance=tolerance
            )

    def _matching(self, verb: str) -> DenoisingScoreMatching:
        if self.generative.matching is None:
            raise ConfigurationError(f"no SDE is set: call set_sde(...) before {verb}.")
        return self.generative.matching

    @contextmanager
    def _drawing(
        self,
        seed: int | None,
        generator: torch.Generator | None,
        precision: str | None,
        device: torch.device | None = None,
    ) -> Iterator[nn.Module]:
        """Inside ``with`` the streams are those of one draw, and the model is as evaluated."""
        if seed is not None and generator is not None:
            raise ConfigurationError("seed and generator were both given: pass one of them.")
        if generator is not None:
            words = torch.randint(2**63 - 1, (), generator=generator, device=generator.device)
            seed = int(words.item())
        if seed is None:
            seed = derive_seed(self.data_seed, "draw", self.generative.draws)
            self.generative.draws += 1
        require_count("seed", seed, minimum=0)
        where = self.device if device is None else device
        with seeded_streams(seed, where), self._evaluating(precision) as model:
            yield model

    @contextmanager
    def _evaluating(self, precision: str | None) -> Iterator[nn.Module]:
        run = evaluation_run(self, self._callbacks, precision)
        with evaluation_mode(run), run.forward.precision.forward():
            yield run.forward.model


def _score_of(matching: DenoisingScoreMatching, model: nn.Module) -> Any:
    return lambda t, x, *conditions: matching.score(model, t, x, *conditions)
