"""`specxai info`: versions, kernels, backends, each with its reason."""

from __future__ import annotations

import importlib.util
import os
import platform


def info() -> str:
    """A few lines of text on this installation."""
    import torch

    import specxai
    from specxai import native
    from specxai.backends import describe

    ok, reason = native.available()
    cuda = torch.cuda.get_device_name() if torch.cuda.is_available() else "no device"
    triton = importlib.util.find_spec("triton") is not None
    rows = [
        ("specxai", specxai.__version__),
        ("Python", platform.python_version()),
        ("torch", f"{torch.__version__}, {torch.get_num_threads()} threads of {os.cpu_count()} CPUs"),
        ("native kernels", f"{native.simd_level()}" if ok else f"not available: {reason}"),
        ("Triton", "installed" if triton else "not installed: pip install 'specxai[triton]'"),
        ("CUDA", cuda),
    ]
    rows += [(f"backend {name}", f"{'yes' if good else 'no'}: {why}") for name, good, why in describe()]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)
