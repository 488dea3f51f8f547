"""ModuleModes: switches modules to evaluation mode and back, at a fraction of what torch takes.

``Module.modules`` and ``Module.eval`` recurse through generators and ``Module.__setattr__``, which
together take as long as a small model takes for a batch.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

_TRAIN, _EVAL, _SETATTR = nn.Module.train, nn.Module.eval, nn.Module.__setattr__


class ModuleModes:
    """The modes that modules have now, to which they can be put back.

    Args:
        roots: the modules; those inside them are found.

    Attributes:
        modules: ``roots`` and all modules inside them, each once.
    """

    def __init__(self, roots: Iterable[nn.Module]) -> None:
        self._roots = tuple(roots)
        self.modules = all_modules(self._roots)
        self._modes = [module.training for module in self.modules]
        self._is_plain = all(map(_is_plain, self.modules))

    def evaluate(self) -> None:
        """As ``eval()`` of each root."""
        if self._is_plain:
            for module in self.modules:
                module.__dict__["training"] = False
        else:
            for root in self._roots:
                root.eval()

    def restore(self) -> None:
        """Put the mode of each module back: parts may have modes of their own."""
        for module, mode in zip(self.modules, self._modes, strict=True):
            if module.training is mode:
                continue
            if self._is_plain:
                module.__dict__["training"] = mode
            else:
                module.training = mode


def all_modules(roots: Iterable[nn.Module]) -> list[nn.Module]:
    """``roots`` and all modules inside them, each once."""
    found = list(roots)
    seen = set()
    for module in found:  # which grows meanwhile
        if module not in seen:
            seen.add(module)
            parts = module._modules  # noqa: SLF001  children() takes several times as long
            if parts:
                found += [part for part in parts.values() if part is not None]
    return found if len(found) == len(seen) else list(dict.fromkeys(found))


def _is_plain(module: nn.Module) -> bool:
    """Whether ``eval()`` and ``train()`` do nothing but set the attribute."""
    kind, own = type(module), module.__dict__
    return (
        kind.train is _TRAIN
        and kind.eval is _EVAL
        and kind.__setattr__ is _SETATTR
        and "training" in own
        and "train" not in own
        and "eval" not in own
    )
