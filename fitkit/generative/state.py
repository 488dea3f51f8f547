"""Config and state of SDE and sampler in a checkpoint."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from fitkit.checkpointing.format.class_names import class_name, resolve_class
from fitkit.checkpointing.format.component_config import (
    as_build_error,
    decode_kwargs,
    encode_kwargs,
)
from fitkit.core.component_spec import ComponentSpec
from fitkit.core.errors import CheckpointError
from fitkit.generative.components import GenerativeComponents
from fitkit.generative.sampler import Sampler
from fitkit.generative.sde import SDE

_OPTIONS = ("divide_by_std", "likelihood_weighting")
_NO_SAMPLER: Mapping[str, Any] = {"class": None, "kwargs": None, "state": {}}


def sde_config(
    components: GenerativeComponents, pending: Mapping[str, Any]
) -> dict[str, Any] | None:
    """The value of the key ``sde``; ``None`` if no SDE is set or pending."""
    if components.matching is None:
        saved: dict[str, Any] | None = pending.get("sde")
        return saved
    options = {name: getattr(components.matching, name) for name in _OPTIONS}
    return {**_config(components.sde_spec, components.matching.sde), **options}


def sampler_config(
    components: GenerativeComponents, pending: Mapping[str, Any], num_draws: int
) -> dict[str, Any] | None:
    """The value of the key ``sampler``; ``None`` if neither a sampler nor an SDE is set."""
    sampler = pending.get("sampler")
    if components.sampler is not None:
        sampler = _config(components.sampler_spec, components.sampler)
    if sampler is None and sde_config(components, pending) is None:
        return None
    return {**(sampler or _NO_SAMPLER), "draws": num_draws}


def _config(spec: ComponentSpec | None, built: Any) -> dict[str, Any]:
    return {
        "class": class_name(type(built)),
        "kwargs": encode_kwargs(spec),
        "state": built.state_dict(),
    }


def rebuild_generative(components: GenerativeComponents, state: Mapping[str, Any]) -> None:
    """Build the SDE and the sampler in a checkpoint.

    Raises:
        CheckpointError: a class is not imported or of the wrong kind.
    """
    kinds: dict[str, type[Any]] = {"sde": SDE, "sampler": Sampler}
    for part, kind in kinds.items():
        saved = state[part]
        if saved is None:
            continue
        remedy = f"pass skip_sampler_sde=True and call set_{part} yourself"
        with as_build_error(part, remedy):
            if saved["class"] is None:
                continue
            if saved["kwargs"] is None:
                warnings.warn(
                    f"the arguments of the {part} {saved['class']!r} could not be stored: call "
                    f"set_{part} after loading, which then takes over its state.",
                    stacklevel=4,
                )
                continue
            cls = resolve_class(saved["class"], kind, remedy)
            kwargs = decode_kwargs({f"{part}_kwargs": saved["kwargs"]}, part)
            if part == "sde":
                components.set_sde(cls, kwargs, **{name: saved[name] for name in _OPTIONS})
            else:
                components.set_sampler(cls, kwargs)


def load_component(
    part: str,
    components: GenerativeComponents,
    pending: dict[str, Any],
    saved: dict[str, Any] | None,
) -> None:
    """Load the state of the SDE or the sampler, or keep it in ``pending`` until it is set.

    Raises:
        CheckpointError: it is of another class.
    """
    pending.pop(part, None)
    if saved is not None and saved["class"] is not None:
        pending[part] = saved
    load_pending(components, pending)


def load_pending(components: GenerativeComponents, pending: dict[str, Any]) -> None:
    """Load pending states into the SDE and the sampler that are set.

    Raises:
        CheckpointError: they are of other classes.
    """
    for part, built in (("sde", components.sde), ("sampler", components.sampler)):
        saved = pending.get(part)
        if saved is None or built is None:
            continue
        if saved["class"] != class_name(type(built)):
            raise CheckpointError(
                f"the checkpoint holds the {part} {saved['class']!r}, this handler has "
                f"{class_name(type(built))!r}: call set_{part} with the class that was saved, or "
                f"pass skip_sampler_sde=True to NNHandler.load."
            )
        built.load_state_dict(saved["state"])
        del pending[part]
