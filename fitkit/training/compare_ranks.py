"""RankPlan: what the ranks find in common when ``fit`` or ``evaluate`` begins."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fitkit.core.callback_list import CallbackList
from fitkit.core.errors import ConfigurationError, listed
from fitkit.core.event import Event
from fitkit.core.validation_sets import pass_name
from fitkit.data.own_part import AUTO, DATA_REMEDY, resolve
from fitkit.data.spec import DataSpec
from fitkit.engine.batch_logs import BatchLogs, BatchLogsOfRanks
from fitkit.handler.base_handler import BaseHandler
from fitkit.metrics.metric import Metric
from fitkit.training.options import FitOptions
from fitkit.training.rank_facts import by_pass, data_facts, evaluation_facts, fit_facts, model_lines

_SAME = "give all ranks the same arguments and data"
_CALLBACKS = (
    "attach callbacks that save or change training to every rank, as only rank 0 writes files"
)


@dataclass(frozen=True)
class RankPlan:
    """What every rank does alike, whichever callbacks it has; that of a single rank is empty.

    Attributes:
        intervals: every how many batches a callback of any rank reads their logs, by event.
        share_after: orders of callbacks that log values in ``on_epoch_end`` which later ones read.
    """

    intervals: Mapping[Event, Sequence[int]] = field(default_factory=dict)
    share_after: Sequence[int] = ()

    def batch_logs(self, handler: BaseHandler) -> BatchLogs:
        """What makes the logs of a batch."""
        if handler.world.size == 1:
            return BatchLogs()
        parts = handler.parts
        names_vary = parts.train_step is not None or parts.evaluation_step is not None
        names_vary = names_vary or not all(isinstance(m, Metric) for m in parts.metrics.values())
        return BatchLogsOfRanks(
            handler.world, handler.device, self.intervals, names_vary=names_vary
        )


def compare_fit(
    handler: BaseHandler, options: FitOptions, train: DataSpec, sets: Mapping[str, DataSpec]
) -> tuple[RankPlan, FitOptions, DataSpec, dict[str, DataSpec]]:
    """Compare a call of ``fit`` with that of the other ranks; one exchange, before any change.

    Returns:
        what they have in common; the options with the seed of rank 0; the data with how it is
        split, the sets in the order of rank 0.

    Raises:
        ConfigurationError: the ranks would wait for each other or train different runs; the same
            error on all of them.
    """
    if handler.world.size == 1:
        return RankPlan(), options, train, dict(sets)
    ranks = handler.world.gather_all(fit_facts(handler, options, train, sets))
    lines = [*_differing_settings(ranks), *_differing_callbacks(ranks)]
    if len({facts["model"] for facts in ranks}) > 1:
        lines += _differing_models(handler.world.gather_all(model_lines(handler)))
    specs = _compare_data(handler, by_pass(train, sets), ranks, lines)
    options = _with_seed_of_rank_0(handler, options, ranks)
    handler.callbacks.may_log_on_another_rank = any(facts["may_log"] for facts in ranks)
    return _plan(ranks), options, specs["train"], _named(sets, specs)


def compare_evaluation(
    handler: BaseHandler, callbacks: CallbackList, sets: Mapping[str, DataSpec]
) -> tuple[RankPlan, dict[str, DataSpec]]:
    """As ``compare_fit``, for ``evaluate``."""
    if handler.world.size == 1:
        return RankPlan(), dict(sets)
    ranks = handler.world.gather_all(evaluation_facts(handler, callbacks, sets))
    specs = _compare_data(handler, by_pass(None, sets), ranks, [])
    handler.seeds.set_data(ranks[0]["data_seed"])
    return _plan(ranks), _named(sets, specs)


def require_same_data(handler: BaseHandler, spec: DataSpec) -> None:
    """Raise ``ConfigurationError`` on all ranks unless they predict the same data."""
    if handler.world.size == 1:
        return
    ranks = handler.world.gather_all(data_facts(handler, spec))
    # prediction takes the data in its order, so nothing is drawn
    facts = [{**one, "generators": None} for one in ranks]
    split, problem, warning = resolve("the data to predict", facts)
    has_same_length = len({one["length"] for one in facts}) == 1
    if split == AUTO and problem is None and warning is None and has_same_length:
        return
    raise ConfigurationError(
        f"the data to predict is not the same on all ranks, and predict returns the outputs of all "
        f"of them in the order of the data: pass the same data on all ranks, or let each rank "
        f"predict its own in a function of fitkit.on_rank(range({len(facts)}))."
    )


def _named(sets: Iterable[str], specs: Mapping[str, DataSpec]) -> dict[str, DataSpec]:
    """The validation sets by name, in the order of ``specs``, which have the names of passes."""
    names = {pass_name(name): name for name in sets}
    return {names[key]: spec for key, spec in specs.items() if key in names}


def _compare_data(
    handler: BaseHandler,
    specs: Mapping[str, DataSpec],
    ranks: Sequence[Mapping[str, Any]],
    lines: list[str],
) -> dict[str, DataSpec]:
    """The data in the order of rank 0, each with how it is split.

    Raises:
        ConfigurationError: it cannot be, or there are ``lines`` of other differences.
    """
    names = [list(facts["data"]) for facts in ranks]
    if any(set(one) != set(names[0]) for one in names):
        shown = [listed(name for name in one if name != "train") for one in names]
        raise _error([*lines, f"the data to validate on is {by_value(shown)} ({_SAME})"])
    agreed = {}
    for name in names[0]:
        facts, title = [one["data"][name] for one in ranks], f"the {_title(name)} data"
        split, problem, warning = resolve(title, facts)
        lengths = [one["length"] for one in facts]
        if split == AUTO and problem is None and len(set(lengths)) > 1:
            problem = f"{title} is {by_value(lengths)} ({DATA_REMEDY})"
        lines += [] if problem is None else [problem]
        if handler.world.is_main:
            if warning is not None:
                warnings.warn(warning, stacklevel=2)
            if split != specs[name].split:
                handler.logger.info("%s is split by rank already: each takes its own", title)
        agreed[name] = replace(specs[name], split=split)
    if lines:
        raise _error(lines)
    return agreed


def _title(name: str) -> str:
    return "training" if name == "train" else name


def _plan(ranks: Sequence[Mapping[str, Any]]) -> RankPlan:
    epoch_end = {entry for facts in ranks for entry in facts["epoch_end"]}
    last = max((order for order, _ in epoch_end), default=0)
    return RankPlan(
        intervals={
            event: sorted({n for facts in ranks for n in facts["intervals"][event]})
            for event in ranks[0]["intervals"]
        },
        share_after=sorted({order for order, logs in epoch_end if logs and order < last}),
    )


def _with_seed_of_rank_0(
    handler: BaseHandler, options: FitOptions, ranks: Sequence[Mapping[str, Any]]
) -> FitOptions:
    """All ranks draw as rank 0 does, whichever seed they were given."""
    seeds, data_seed = ranks[0]["seeds"], ranks[0]["data_seed"]
    if any(facts["seeds"] != seeds for facts in ranks):
        given = [one if one is not None else own for one, own in (f["seeds"] for f in ranks)]
        if handler.world.is_main:
            handler.logger.warning(
                "the ranks have different seeds (%s): all of them use that of rank 0",
                by_value(list(map(repr, given))),
            )
        options = replace(options, seed=seeds[0])
        if handler.seeds.given != seeds[1]:
            handler.seeds.start_from(seeds[1])
    if options.seed is None and handler.seeds.data != data_seed:
        handler.seeds.set_data(data_seed)
    return options


def _error(lines: Sequence[str]) -> ConfigurationError:
    return ConfigurationError(f"the ranks differ: {'; '.join(lines)}.")


# ---- differences, in words ----------------------------------------------------------------------


def by_value(values: Sequence[str]) -> str:
    """Which rank has which value.

    >>> by_value(["2", "3", "3"])
    '2 on rank 0, 3 on ranks 1 and 2'
    """
    groups: dict[str, list[int]] = {}
    for rank, value in enumerate(values):
        groups.setdefault(value, []).append(rank)
    return ", ".join(f"{value} on {ranks_text(ranks)}" for value, ranks in groups.items())


def ranks_text(ranks: Sequence[int]) -> str:
    """Ranks by name; of many the first ones.

    >>> ranks_text([1]), ranks_text([0, 2, 3])
    ('rank 1', 'ranks 0, 2 and 3')
    """
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    shown = list(map(str, ranks[:8]))
    last = f"{len(ranks) - 7} more" if len(ranks) > 8 else shown[-1]
    return f"ranks {', '.join(shown[:7] if len(ranks) > 8 else shown[:-1])} and {last}"


def _differing_settings(ranks: Sequence[Mapping[str, Any]]) -> list[str]:
    settings = [facts["settings"] for facts in ranks]
    lines = []
    for name in dict.fromkeys(name for one in settings for name in one):
        values = [str(one.get(name, "none")) for one in settings]
        if len(set(values)) > 1:
            lines.append(f"{name} is {by_value(values)}")
    return [f"{', '.join(lines)} ({_SAME})"] if lines else []


def _differing_callbacks(ranks: Sequence[Mapping[str, Any]]) -> list[str]:
    of_ranks = [facts["callbacks"] for facts in ranks]
    counts = [Counter(entry["class"] for entry in entries) for entries in of_ranks]
    lines = []
    for name in dict.fromkeys(name for count in counts for name in count):
        numbers = [count[name] for count in counts]
        if len(set(numbers)) > 1:
            having = [rank for rank, number in enumerate(numbers) if number]
            is_partial = len(having) < len(numbers)
            many = f"attached {by_value([f'{number} times' for number in numbers])}"
            lines.append(f"{name} is {f'on {ranks_text(having)} only' if is_partial else many}")
    if lines:
        return [f"{', '.join(lines)} ({_CALLBACKS})"]
    orders = [", ".join(entry["class"] for entry in entries) for entries in of_ranks]
    if len(set(orders)) > 1:
        return [f"the order of callbacks is {by_value(orders)} (pass them in one order)"]
    for entries in zip(*of_ranks, strict=True):
        configs = [entry["config"] for entry in entries]
        for name in dict.fromkeys(name for config in configs for name in config):
            values = [repr(config.get(name)) for config in configs]
            if len(set(values)) > 1:
                lines.append(f"{name} of {entries[0]['class']} is {by_value(values)}")
    return [f"{', '.join(lines)} ({_SAME})"] if lines else []


def _differing_models(of_ranks: Sequence[Sequence[str]]) -> list[str]:
    """The first parameter or buffer that ranks have differently."""
    longest = max(map(len, of_ranks))
    for index in range(longest):
        lines = [one[index] if index < len(one) else "nothing more" for one in of_ranks]
        if len(set(lines)) > 1:
            where = f"parameter or buffer number {index + 1} of the model"
            return [f"{where} is {by_value(lines)} (build the same model on all ranks)"]
    return []
