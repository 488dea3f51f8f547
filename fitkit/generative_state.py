"""SDE and sampler as a checkpoint holds them, rebuilt from that, and put back into their state."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fitkit.checkpointing.plain import from_plain
from fitkit.checkpointing.references import name_of, resolve
from fitkit.core.errors import CheckpointError
from fitkit.description import build_kwargs, describe, rebuilding
from fitkit.generative.sampler import Sampler
from fitkit.generative.sde import SDE
from fitkit.parts import Described

if TYPE_CHECKING:
    from fitkit.generating import GenerativeHandler
    from fitkit.generative_parts import GenerativeParts

_OPTIONS = ("divide_by_std", "likelihood_weighting")


def describe_generative(parts: GenerativeParts) -> dict[str, Any]:
    """The keys ``sampler`` and ``sde`` of a checkpoint; ``None`` for what is not set."""
    sde, sampler = parts.waiting.get("sde"), parts.waiting.get("sampler")
    if parts.matching is not None:
        options = {name: getattr(parts.matching, name) for name in _OPTIONS}
        sde = {**_entry("sde", parts.sde_spec, parts.matching.sde), **options}
    if parts.sampler is not None:
        sampler = _entry("sampler", parts.sampler_spec, parts.sampler)
    if sampler is not None or sde is not None:
        none: dict[str, Any] = {"class": None, "kwargs": None, "state": {}}
        sampler = {**(sampler or none), "draws": parts.draws}
    return {"sampler": sampler, "sde": sde}


def _entry(part: str, spec: Described | None, built: Any) -> dict[str, Any]:
    described = describe(part, spec)
    return {
        "class": name_of(type(built)),
        "kwargs": described[f"{part}_kwargs"],
        "state": built.state_dict(),
    }


def rebuild_generative(handler: GenerativeHandler, state: Mapping[str, Any]) -> None:
    """Give a new handler the SDE and the sampler that a checkpoint describes.

    Raises:
        CheckpointError: a class is not here or of the wrong kind.
    """
    kinds: dict[str, type[Any]] = {"sde": SDE, "sampler": Sampler}
    for part, kind in kinds.items():
        saved = state[part]
        if saved is None:
            continue
        remedy = f"pass skip_sampler_sde=True and call set_{part} yourself"
        with rebuilding(part, remedy):
            if saved["class"] is None:
                continue
            if saved["kwargs"] is None:
                warnings.warn(
                    f"the arguments of the {part} {saved['class']!r} could not be stored: call "
                    f"set_{part} after loading; its state is kept for it.",
                    stacklevel=3,
                )
                continue
            cls = resolve(saved["class"], kind, remedy)
            kwargs = build_kwargs({f"{part}_kwargs": saved["kwargs"]}, part)
            if part == "sde":
                handler.set_sde(cls, **{name: saved[name] for name in _OPTIONS}, **kwargs)
            else:
                handler.set_sampler(cls, **kwargs)


def load_generative(parts: GenerativeParts, state: Mapping[str, Any]) -> None:
    """Put SDE and sampler into their saved state; it waits for those that are yet to be set.

    Raises:
        CheckpointError: they are of other classes.
    """
    parts.waiting = {part: state[part] for part in ("sde", "sampler") if state[part] is not None}
    parts.draws = parts.waiting.get("sampler", {}).get("draws", 0)
    if parts.waiting.get("sampler", {"class": ""})["class"] is None:
        del parts.waiting["sampler"]
    give_state(parts)


def give_state(parts: GenerativeParts) -> None:
    """Let the parts that are set have the state that waited for them.

    Raises:
        CheckpointError: they are of other classes.
    """
    for part, built in (("sde", parts.sde), ("sampler", parts.sampler)):
        saved = parts.waiting.get(part)
        if saved is None or built is None:
            continue
        if saved["class"] != name_of(type(built)):
            raise CheckpointError(
                f"the checkpoint holds the {part} {saved['class']!r}, this handler has "
                f"{name_of(type(built))!r}: call set_{part} with the class that was saved, or pass "
                f"skip_sampler_sde=True to NNHandler.load."
            )
        built.load_state_dict(from_plain(saved["state"]))
        del parts.waiting[part]
