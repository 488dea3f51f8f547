"""Parameter groups of an optimizer by the names of their parameters, as a checkpoint has them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from fitkit.core.errors import CheckpointError, as_checkpoint_error
from fitkit.core.trained_modules import TrainedModules
from fitkit.handler.group_options import IMPLEMENTATION_FLAGS
from fitkit.handler.parts import Parts

Groups = list[dict[str, Any]]

# Beginnings of the names of parameters that are not the model's.
_LOSS, _OTHER = "loss:", "other:"


def describe_groups(parts: Parts) -> Groups | None:
    """Each group's parameters by name, and the options that the program gave it.

    The options are those before a scheduler or callback changed them; ``None`` for a group that was
    added later.
    """
    if parts.optimizer is None:
        return None
    options: list[Any] = [*parts.built_options]
    options += [None] * (len(parts.optimizer.param_groups) - len(options))
    names = _group_names(parts, parts.optimizer)
    return [{"names": one, "options": two} for one, two in zip(names, options, strict=True)]


def checked_groups(groups: Any) -> Groups | None:
    """``groups`` if they may come from ``describe_groups``, else a ``CheckpointError``."""
    with as_checkpoint_error("the checkpoint's optimizer_groups cannot be read"):
        for group in groups or ():
            if not all(isinstance(name, str) for name in group["names"]):
                raise TypeError("a name is not a string")
            dict(group["options"] or {})
    checked: Groups | None = groups
    return checked


def are_of_model(groups: Groups) -> bool:
    """Whether all parameters of ``groups`` were parameters of the model."""
    others = (_LOSS, _OTHER)
    return not any(name.startswith(others) for group in groups for name in group["names"])


def make_groups(groups: Groups, module: nn.Module) -> Iterable[Any]:
    """The groups that the program gave the optimizer, to build it with.

    In a model with other names they are all of its parameters.
    """
    named = dict(module.named_parameters())
    if not all(name in named for group in groups for name in group["names"]):
        return module.parameters()
    return [
        {**group["options"], "params": [named[name] for name in group["names"]]}
        for group in groups
        if group["options"] is not None
    ]


def align(parts: Parts, saved: dict[str, Any], groups: Groups) -> tuple[dict[str, Any], Groups]:
    """The saved state in the order of this program's parameters, and the groups that it lacks.

    Parameters are found by name. A name that the program does not have counts as renamed: the next
    parameter without a counterpart takes its place.

    Raises:
        CheckpointError: a group has other members than in this program.
    """
    if parts.optimizer is None:
        return saved, []
    with as_checkpoint_error("the checkpoint's optimizer state has no usable parameter groups"):
        entries = [dict(group) for group in saved["param_groups"]]
        sizes = [len(entry["params"]) for entry in entries]
    names, named = _group_names(parts, parts.optimizer), _named(parts)
    num_built = len(parts.built_options)
    if sizes != [len(group["names"]) for group in groups]:
        raise CheckpointError(
            f"the checkpoint's optimizer has parameter groups of {sizes} parameters, but the names "
            f"of {_text(group['names'] for group in groups)}: use another checkpoint."
        )
    if len(groups) < num_built:
        raise _other_members(names, groups)
    for number, group in enumerate(groups[:num_built]):
        order = _positions(names[number], group["names"], named)
        if order is None:
            raise _other_members(names, groups)
        indices = entries[number]["params"]
        entries[number]["params"] = [indices[position] for position in order]
        if "param_names" in parts.optimizer.param_groups[number]:
            entries[number]["param_names"] = parts.optimizer.param_groups[number]["param_names"]
    if not all(name in named for group in groups[num_built:] for name in group["names"]):
        raise _other_members(names, groups)
    added = [
        {**_options(entry, parts.optimizer), "params": [named[name] for name in group["names"]]}
        for entry, group in zip(entries[num_built:], groups[num_built:], strict=True)
    ]
    return {**saved, "param_groups": entries}, added


def add_groups(optimizer: Optimizer, num_built: int, added: Groups) -> list[str]:
    """Make ``added`` the groups beyond those that the program built the optimizer with.

    A callback that adds one of them again, because it does so at the beginning of each run, changes
    nothing.
    """
    own, wanted = _ids(optimizer.param_groups[num_built:]), _ids(added)
    if own == wanted:
        return []
    sentences = [f"optimizer group {num_built + n}: dropped" for n in range(len(own))]
    vars(optimizer).pop("add_param_group", None)
    del optimizer.param_groups[num_built:]
    for number, group in enumerate(added, num_built):
        named = list(zip(group.get("param_names", ()), group["params"], strict=False))
        optimizer.add_param_group({**group, "params": named or group["params"]})
        sentences.append(f"optimizer group {number}: added as in the checkpoint")
    if added:
        _accept_again(optimizer, wanted)
    return sentences


def _ids(groups: Iterable[Mapping[str, Any]]) -> list[list[int]]:
    return [[id(parameter) for parameter in group["params"]] for group in groups]


def _accept_again(optimizer: Optimizer, known: list[list[int]]) -> None:
    add = optimizer.add_param_group

    def add_unless_known(group: dict[str, Any]) -> None:
        given = group["params"]
        given = [given] if isinstance(given, Tensor) else list(given)
        plain = [item[1] if isinstance(item, tuple) else item for item in given]
        if [id(parameter) for parameter in plain] not in known:
            add({**group, "params": given})

    vars(optimizer)["add_param_group"] = add_unless_known


def _options(entry: Mapping[str, Any], optimizer: Optimizer) -> dict[str, Any]:
    own = {
        key: optimizer.defaults[key] for key in IMPLEMENTATION_FLAGS if key in optimizer.defaults
    }
    return {**entry, **own}


def _named(parts: Parts) -> dict[str, Tensor]:
    """The parameters that have a name: the model's, and those of a loss module."""
    loss = None if parts.loss is None else parts.loss.function
    modules = TrainedModules(parts.module, loss if isinstance(loss, nn.Module) else None)
    of_loss = modules.named_loss_parameters().items()
    return {
        **dict(parts.module.named_parameters()),
        **{f"{_LOSS}{name}": parameter for name, parameter in of_loss},
    }


def _group_names(parts: Parts, optimizer: Optimizer) -> list[list[str]]:
    """The names of each group's parameters; those without a name are numbered."""
    names = {id(parameter): name for name, parameter in _named(parts).items()}
    num_named = len(names)
    return [
        [
            names.setdefault(id(parameter), f"{_OTHER}{len(names) - num_named}")
            for parameter in group["params"]
        ]
        for group in optimizer.param_groups
    ]


def _positions(
    own: Sequence[str], saved: Sequence[str], named: Mapping[str, Tensor]
) -> list[int] | None:
    """Where each of the program's parameters is in a saved group; ``None``: it has others."""
    position = {name: index for index, name in enumerate(saved)}
    renamed = iter([index for index, name in enumerate(saved) if name not in own])
    is_other = any(name in named for name in saved if name not in own)
    if len(own) != len(saved) or is_other:
        return None
    return [position[name] if name in position else next(renamed) for name in own]


def _other_members(own: list[list[str]], saved: Groups) -> CheckpointError:
    return CheckpointError(
        f"the checkpoint's optimizer has parameter groups of {_text(g['names'] for g in saved)}, "
        f"this handler's of {_text(own)}: set the optimizer as it was saved, or pass "
        f"skip_optimizer=True to NNHandler.load."
    )


def _text(groups: Iterable[Sequence[str]]) -> str:
    shown = [
        f"{len(names)} ({', '.join([*names[:3], '...'] if len(names) > 3 else names)})"
        for names in groups
    ]
    return " + ".join(shown)
