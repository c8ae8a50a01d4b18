"""The kernel for a diagonal plus a low rank in the interpreter: norms and softmax, forward and adjoint."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from specxai.kernels.low_rank import low_rank
from tolerances import assert_close


def tables(groups: int, size: int, rank: int, dtype: torch.dtype, rows: int, live: float = 0.7) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(groups + size)

    def table() -> Tensor:
        at = torch.randperm(rows, generator=generator)[:groups * size].int().reshape(groups, size)
        return at.masked_fill(torch.rand(groups, size, generator=generator) > live, -1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    return {"inside": table(), "outside": table(), "diagonal": draw(groups, size), "left": draw(groups, rank, size),
            "right": draw(groups, rank, size)}


@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize(("groups", "size", "probes"), [(1, 1, 1), (3, 7, 7), (2, 8, 8), (2, 9, 9), (1, 150, 16),
                                                        (5, 33, 65), (2, 300, 3)])
def test_values(groups, size, probes, rank, dtype):
    rows = groups * size + 5
    given = tables(groups, size, rank, dtype, rows)
    inside, outside = given["inside"], given["outside"]
    block = torch.full((rows, probes + 3), torch.nan, dtype=dtype)[:, :probes]  # columns of a wider one
    block[inside[inside >= 0].long()] = torch.randn(int((inside >= 0).sum()), probes, dtype=dtype)
    read = torch.where((inside >= 0)[..., None], block[inside.long()], 0).double()
    made = given["diagonal"].double()[..., None] * read
    made += given["left"].double().mT @ (given["right"].double() @ read)
    before = torch.randn(rows, probes, dtype=dtype)
    for accumulate in (False, True):
        want, got, again = before.double().clone(), before.clone(), before.clone()
        at = outside[outside >= 0].long()
        want[at] = made[outside >= 0] + (want[at] if accumulate else 0)
        low_rank(**given, block=block, out=got, accumulate=accumulate)
        low_rank(**given, block=block, out=again, accumulate=accumulate)
        assert torch.equal(got, again)
        assert_close(got, want)


def test_nothing_to_do():
    for groups, size, probes in ((0, 3, 2), (2, 0, 2), (2, 3, 0)):
        out = torch.ones(9, probes)
        low_rank(**tables(groups, size, 1, torch.float32, 9), block=torch.ones(9, probes), out=out)
        assert out.eq(1).all()


@pytest.mark.parametrize(("name", "change", "error", "message"), [
    ("left", lambda t: t.repeat(1, 3, 1), ValueError, "rank 1 to 2"),
    ("right", lambda t: t[:, :, 1:], ValueError, "right must be"),
    ("inside", lambda t: t.long(), TypeError, "inside is torch.int64"),
    ("diagonal", lambda t: t.double(), TypeError, "diagonal is torch.float64"),
    ("outside", lambda t: t.T.contiguous().T, ValueError, "outside must be contiguous")])
def test_refuses(name, change, error, message):
    given = tables(2, 3, 1, torch.float32, 9)
    with pytest.raises(error, match=message):
        low_rank(**given | {name: change(given[name])}, block=torch.ones(9, 2), out=torch.ones(9, 2))
