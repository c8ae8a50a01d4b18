"""Layer names: forward hooks mark every module's output while the model is traced.

A mark is an identity operator that carries "module path # call number".  It survives functionalisation, in-place
operators and reuse of a module, and is removed from the graph afterwards.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

_library = torch.library.Library("specxai", "FRAGMENT")
_library.define("mark(Tensor x, str name) -> Tensor")
_library.impl("mark", lambda x, name: x.clone(), "CompositeExplicitAutograd")
torch.library.register_fake("specxai::mark", lambda x, name: x.clone(), lib=_library)
MARK = torch.ops.specxai.mark.default


@contextmanager
def marked(model: nn.Module) -> Iterator[Counter[str]]:
    """While open, each call of each submodule marks its tensor output; yields the calls counted by module path."""
    calls: Counter[str] = Counter()

    def hook_for(path: str):
        def hook(module, inputs, output):
            calls[path] += 1
            if isinstance(output, Tensor) and output.is_floating_point():
                return MARK(output, f"{path}#{calls[path]}")
            return None

        return hook

    handles = [module.register_forward_hook(hook_for(path)) for path, module in model.named_modules() if path]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def module_names(model: nn.Module) -> dict[int, tuple[str, ...]]:
    """id of each submodule -> its dotted names; a module registered twice has two."""
    names: dict[int, list[str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        if path:
            names.setdefault(id(module), []).append(path)
    return {key: tuple(paths) for key, paths in names.items()}
