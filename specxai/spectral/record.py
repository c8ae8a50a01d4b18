"""What a decomposition and an explanation share: components to choose from, a Local that stays here, a file."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Self

import torch

from specxai.spectral import store

__all__ = ["Record", "Stored"]

# The solver's own words in `settings["svd"]`, as far as it said them; read back by the summary and the pictures.
SOLVER_KINDS = {"norm": (float, None), "floor": (float, None), "estimate": (float, None), "lambda_1": (float, None),
                "converged": bool, str: object}
SETTINGS_KINDS = {"model": (str, None), "bypass": bool, "output": (str, None), "svd": SOLVER_KINDS, str: object}


class Stored:
    """Base of dataclasses that are saved, and hold the `local` that they came from, which is not."""

    LAYOUT: ClassVar[store.Layout]

    def save(self, path) -> None:
        """Write one safetensors file, or, where `path` ends in .npz, a NumPy export that `load` does not read."""
        store.write(path, self.LAYOUT, self)

    @classmethod
    def load(cls, path) -> Self:
        """Read a file written by `save`, without its Local.

        Raises FileNotFoundError, or FileError (a ValueError) that names the cause, for a file that is foreign,
        damaged, or of a later version.
        """
        return cls(**store.read(path, cls.LAYOUT))

    def __getstate__(self) -> dict:
        # A Local holds the model, locks and compiled stages: it stays where it is, so that results can travel.
        return {**self.__dict__, "local": None}

    def __copy__(self) -> Self:
        return replace(self)


class Record(Stored):
    """Base of dataclasses with components at positions 0..k−1: `S` (k,), a bound `error`, a `local`, `settings`."""

    ROWS: ClassVar[tuple[str, ...]]  # fields with one row per component

    def __len__(self) -> int:
        return len(self.S)

    def positions(self, key) -> torch.Tensor:
        """`key` (int, slice, list, mask, tensor) as a tensor (picked,) of distinct positions 0..k−1.

        Raises IndexError for a component that does not exist or is named twice, TypeError for another kind of key.
        """
        if not isinstance(key, slice):
            key = torch.as_tensor(sorted(key) if isinstance(key, (set, frozenset, range)) else key, device="cpu")
            key = key.long() if key.numel() == 0 else key
            if key.dtype == torch.bool and key.shape != (len(self),):
                raise IndexError(f"a mask over components must have shape ({len(self)},), not {tuple(key.shape)}")
            if key.dtype != torch.bool and (key.is_floating_point() or key.is_complex() or key.ndim > 1):
                raise TypeError("components are chosen by integers, a slice or a mask, not by a tensor of "
                                f"{key.dtype} and shape {tuple(key.shape)}")
            outside = [] if key.dtype == torch.bool else [i for i in key.reshape(-1).tolist()
                                                          if not -len(self) <= i < len(self)]
            if outside:
                raise IndexError(f"component {outside[0]} does not exist: there are {len(self)} here, at positions "
                                 "from 0; ask for a higher rank (None for all) to get more")
        found = torch.arange(len(self), device="cpu")[key].reshape(-1)
        if len(found.unique()) < len(found):
            raise IndexError(f"a component is named twice in {found.tolist()}, and would be counted twice")
        return found

    def _rows(self, position: torch.Tensor) -> dict:
        """The fields of the components at `position`, and the error of what they leave."""
        kept = {name: getattr(self, name)[position] for name in self.ROWS}
        left_out = max(float((self.S**2).sum()) - float((kept["S"] ** 2).sum()), 0.0)
        # By the triangle inequality, for what is now left out as well.
        return {**kept, "error": None if self.error is None else self.error + left_out**0.5}

    @property
    def solver(self) -> dict:
        """What the solver said of itself beyond the fields: its choices and certificates."""
        return self.settings.get("svd", {})

    @property
    def worst_residual(self) -> float | None:
        """The largest residual relative to λ₁ (of a slice too), None without components."""
        if not len(self):
            return None
        top = self.solver.get("lambda_1") or float(self.S.max())
        return float(self.residuals.max()) / top if top else 0.0

    @property
    def converged(self) -> bool:
        """Whether the solver reached its tolerance."""
        return self.solver.get("converged", True)
