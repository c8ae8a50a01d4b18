"""`specxai info`: versions, kernels, backends, each with its reason."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version

from specxai._version import __version__

# (name, package, extra that installs it)
_EXTRAS = (("Triton", "triton", "triton"), ("torchvision", "torchvision", "models"), ("timm", "timm", "models"),
           ("scikit-learn", "scikit-learn", "demo"))


def info() -> str:
    """A few lines of text on this installation."""
    import torch

    from specxai import native
    from specxai.backends import describe

    ok, reason = native.available()
    compiled, why_not = native.cuda.available()
    cuda = torch.cuda.get_device_name() if torch.cuda.is_available() else "no device"
    rows = [
        ("specxai", __version__),
        ("Python", platform.python_version()),
        ("torch", f"{torch.__version__}, {torch.get_num_threads()} threads of {os.cpu_count()} CPUs"),
        ("native kernels", f"{native.simd_level()}" if ok else f"not available: {reason}"),
        ("CUDA", cuda),
        ("CUDA kernels", "compiled" if compiled else f"not available: {why_not}"),
    ]
    rows += [(name, _version(package, extra)) for name, package, extra in _EXTRAS]
    rows += [(f"backend {name}", f"{'yes' if good else 'no'}: {why}") for name, good, why in describe()]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def _version(package: str, extra: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return f"not installed: pip install 'specxai[{extra}]'"
