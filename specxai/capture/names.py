"""Layer names: forward hooks mark the modules' outputs while the model is traced.

A mark is an identity operator that carries "module path # call number".  It survives functionalisation, in-place
operators and reuse of a module, and is removed from the graph afterwards.  As it costs as much to trace as any other
operator, the leaves that end in an operator of their own go without: that one is their output.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

_library = torch.library.Library("specxai", "FRAGMENT")
_library.define("mark(Tensor x, str name) -> Tensor")
_library.impl("mark", lambda x, name: x.clone(), "CompositeExplicitAutograd")
torch.library.register_fake("specxai::mark", lambda x, name: x.clone(), lib=_library)
MARK = torch.ops.specxai.mark.default


_PLAIN = {getattr(nn, f"{name}{dims}d") for dims in (1, 2, 3)
          for name in ("Conv", "ConvTranspose", "BatchNorm", "MaxPool", "AvgPool")}
_PLAIN |= {nn.Linear, nn.LayerNorm, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.GELU, nn.SiLU}


@dataclass
class Calls:
    """What a trace called.

    count   calls by module path
    plain   what the calls without a mark returned: (module path, number of the call, from 1) -> shape
    """

    count: Counter[str] = field(default_factory=Counter)
    plain: dict[tuple[str, int], torch.Size] = field(default_factory=dict)

    def name(self, path: str, call: int) -> str:
        """The layer name of a module's call, of which the first is 1."""
        return f"{path}#{call}" if self.count[path] > 1 else path


@contextmanager
def marked(model: nn.Module, every: bool) -> Iterator[Calls]:
    """While open, each call of each submodule marks its tensor output; without `every`, but for the plain ones."""
    names = module_names(model)
    modules = {path: module for path, module in model.named_modules() if path}
    # torch numbers the calls of a path behind an "@".
    plain = set() if every else {path for path, module in modules.items()
                                 if _is_plain(module) and len(names[id(module)]) == 1 and "@" not in path}
    calls = Calls()

    def hook_for(path: str):
        def hook(module, inputs, output):
            calls.count[path] += 1
            if not isinstance(output, Tensor) or not output.is_floating_point():
                return None
            if path in plain:
                calls.plain[path, calls.count[path]] = output.shape
                return None
            return MARK(output, f"{path}#{calls.count[path]}")

        return hook

    handles = [module.register_forward_hook(hook_for(path)) for path, module in modules.items()]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _is_plain(module: nn.Module) -> bool:
    """Is the last operator of a call its output?  Not where someone else's hooks or code may follow."""
    own = "forward" in vars(module) or module._forward_hooks or module._forward_pre_hooks
    return type(module) in _PLAIN and not own


def module_names(model: nn.Module) -> dict[int, tuple[str, ...]]:
    """id of each submodule -> its dotted names; a module registered twice has two."""
    names: dict[int, list[str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        if path:
            names.setdefault(id(module), []).append(path)
    return {key: tuple(paths) for key, paths in names.items()}
