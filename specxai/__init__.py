"""SpecXAI: exact, certified spectral explanations of neural networks.

For one input x a network with ReLU-like gates is an affine map, y = J x + b (paper eq. 4).  SpecXAI splits it at a
layer, J = L·R + bypass, takes the SVD of R without building it, and reads an output as a sum of spectral
contributions and biases (eq. 20).

>>> import torch, specxai
>>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)).eval()
>>> e = specxai.explain(net, torch.ones(1, 4), layer="1", target=0, rank=None)
>>> bool(abs(e.output - (e.alpha.sum() + e.bias + e.bypass + e.remainder)) < 1e-5)
True
"""

from __future__ import annotations

import importlib

from specxai._version import __version__

# Public name -> module that defines it; imported on first use, so that `import specxai` stays light.
_EXPORTS = {
    "linearize": "specxai.affine.captured",
    "Local": "specxai.affine.local",
    "summed": "specxai.affine.positions",
    "LocalOperator": "specxai.affine.operator",
    "LinearOperator": "specxai.operators",
    "decompose": "specxai.spectral",
    "Decomposition": "specxai.spectral",
    "explain": "specxai.spectral",
    "explain_many": "specxai.spectral",
    "tokens": "specxai.spectral",
    "Tokens": "specxai.spectral",
    "pullback": "specxai.spectral",
    "lipschitz": "specxai.spectral",
    "Explanation": "specxai.spectral",
}
_MODULES = ("capture", "svd")  # callable packages
# Modules that are imported when they are named.
_OPENED = ("backends", "errors", "lens", "operators", "parallel", "plan", "plots", "rules", "spectral", "transformers",
           "zoo")
__all__ = ["__version__", *_EXPORTS, *_MODULES]


def __getattr__(name: str):
    if name in (*_MODULES, *_OPENED):
        return importlib.import_module(f"specxai.{name}")
    if name in _EXPORTS:
        return getattr(importlib.import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'specxai' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted((*__all__, *_OPENED))
