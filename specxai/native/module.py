"""The compiled module, torch-free: whether it is there, and which instruction set it uses."""

from __future__ import annotations

from pathlib import Path

try:
    from specxai import _native
except ImportError as error:  # not built, or built for another Python
    _native = None
    _source = (Path(__file__).parents[2] / "csrc").is_dir()  # which hides an installed package from who runs in it
    _remedy = "`pip install -e .`, or leave the source folder if it is installed" if _source else "`pip install .`"
    _reason = f"the compiled module specxai._native cannot be imported ({error}); build it with {_remedy}"
else:
    _reason = ""


def available() -> tuple[bool, str]:
    """Whether the compiled module is there, and if not, why."""
    return _native is not None, _reason


def simd_level() -> str:
    """The instruction set in use: the best the CPU has, or SPECXAI_SIMD if set; RuntimeError if that cannot run."""
    return compiled().simd_level()


def supported_levels() -> list[str]:
    """The instruction sets that this build and this CPU have, lowest first."""
    return compiled().supported_levels()


def has_rough() -> bool:
    """Whether this CPU and this build have `rough` products (AVX512-VNNI), at the instruction set in use."""
    return compiled().has_rough()


def compiled():
    """The module; RuntimeError where it is missing."""
    if _native is None:
        raise RuntimeError(_reason)
    return _native
