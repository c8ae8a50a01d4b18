"""The roofs of the card, and each kernel against them at sizes of real layers."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from timing import Clock, tf32

from specxai.native import cuda

# TF32's rate is a third of a TF32x3 product's roof, and so on: products of tensor cores for each of a precision.
PRODUCTS = {"fp32": ("fp32", 1), "tf32": ("tf32", 1), "tf32x3": ("tf32", 3), "bf16": ("bf16", 1),
            "bf16x3": ("bf16", 3), "bf16x6": ("bf16", 6)}


def roofs(clock: Clock, dry: bool) -> Iterator[dict]:
    """Bytes a second of a copy, operations a second of a large product at each precision, with its error."""
    size = 8 << 20 if dry else 2 << 30
    source = torch.ones(size, dtype=torch.uint8, device=clock.device)
    to = torch.empty_like(source)
    told = clock.of(lambda: to.copy_(source), 0.3)
    yield {"what": "copy", "rate": 2 * size / told["seconds"], "unit": "B/s", "error": 0.0, **told}
    n = 128 if dry else 8192
    a, b = (torch.randn(n, n, device=clock.device) for _ in range(2))
    want = a[:8].double() @ b.double()
    for name, dtype in (("fp32", torch.float32), ("tf32", torch.float32), ("bf16", torch.bfloat16)):
        x, y = a.to(dtype), b.to(dtype)
        with tf32(name == "tf32"):
            got = x @ y
            told = clock.of(lambda x=x, y=y: x @ y, 0.5)
        yield {"what": name, "rate": 2 * n**3 / told["seconds"], "unit": "FLOP/s",
               "error": float((got[:8].double() - want).norm() / want.norm()), **told}


def layers(clock: Clock, dry: bool, roof: dict[str, float]) -> Iterator[dict]:
    """Gather-GEMM and packed GEMM of 64 probes, half of the units live; operations are those of live pairs."""
    for precision in PRODUCTS:
        yield from _gather(clock, dry, precision, roof)
        yield from _packed(clock, dry, precision, roof)


def _gather(clock: Clock, dry: bool, precision: str, roof: dict[str, float]) -> Iterator[dict]:
    from specxai.kernels.gather_gemm import gather_gemm, gathering, tile_for
    from specxai.kernels.tile import Tile
    from specxai.plan.positions import Geometry
    from specxai.plan.positions import gathering as table

    side, channels, probes = (2, 16, 8) if dry else (14, 512, 64)
    geometry = Geometry((side, side), (side, side), (3, 3), (1, 1), (1, 1), (1, 1))
    g = torch.Generator().manual_seed(0)
    alive = [torch.rand(side * side, channels, generator=g) < 0.5 for _ in range(2)]
    inside, outside = (torch.where(live, live.flatten().cumsum(0).view_as(live) - 1, -1).int() for live in alive)
    weight = torch.randn(channels, 9, channels, generator=g) / (3 * channels**0.5)
    tables = gathering(inside, outside, table(geometry), weight, 1, clock.device)
    block = torch.randn(tables.read, probes, generator=g).to(clock.device)
    out = torch.empty(tables.written, probes, device=clock.device)
    chosen = tile_for(channels, probes, precision)
    others = [] if dry else [Tile(64, 64, False, 4, 4), Tile(128, 64, False, 4, 4)]
    want = _dense(inside, outside, table(geometry), weight, block.cpu().double()[:, :4])
    for tile in [chosen, *(tile for tile in others if tile != chosen)]:
        if clock.left < 0:
            return
        out.fill_(torch.nan)
        gather_gemm(tables, block, out, precision=precision, tile=tile)
        error = float((out[:, :4].cpu().double() - want).norm() / want.norm())
        told = clock.of(lambda tile=tile: gather_gemm(tables, block, out, precision=precision, tile=tile), 0.1)
        yield _row(f"gather-GEMM {channels}x{channels} at {side}x{side}", precision, 2 * tables.entries * probes, error,
                   told, roof, tile, tile == chosen)


    if precision == "fp32" and cuda.runs_on(clock.device):
        tensors = {"inside": inside, "outside": outside, "neighbours": table(geometry), "weight": weight}
        stage = cuda.GatherGemm(**{name: t.to(clock.device) for name, t in tensors.items()})
        out.fill_(torch.nan)
        stage.run(block, out)
        error = float((out[:, :4].cpu().double() - want).norm() / want.norm())
        yield _row(f"gather-GEMM {channels}x{channels} at {side}x{side}", precision, 2 * tables.entries * probes, error,
                   clock.of(lambda: stage.run(block, out), 0.1), roof, "csrc/cuda", False)


def _packed(clock: Clock, dry: bool, precision: str, roof: dict[str, float]) -> Iterator[dict]:
    from specxai.kernels.packed_gemm import packed, packed_gemm
    from specxai.kernels.split import parts_for
    from specxai.kernels.tile import tile_for

    n, probes = (64, 8) if dry else (4096, 256)
    W = torch.randn(n, n, device=clock.device) / n**0.5
    rows = torch.arange(n, dtype=torch.int32)
    layer, block = packed(W, rows, rows), torch.randn(n, probes, device=clock.device)
    for way, matrix, name in ((layer, W, "forward"), (layer.adjoint(rows), W.T, "adjoint")):
        out = torch.full_like(block, torch.nan)
        packed_gemm(way, block, out, precision=precision)
        want = matrix.double() @ block[:, :4].double()
        error = float((out[:, :4].double() - want).norm() / want.norm())
        told = clock.of(lambda way=way, out=out: packed_gemm(way, block, out, precision=precision), 0.1)
        tile = tile_for(n, probes, precision)
        parts = parts_for(-(-n // tile.out) * -(-probes // tile.probes), -(-n // 32))
        yield _row(f"packed GEMM {n}x{n} x {probes}, {name}, {parts} parts", precision, 2 * n * n * probes, error, told,
                   roof, tile, True)


def _row(what: str, precision: str, work: int, error: float, told: dict, roof: dict, tile, chosen: bool) -> dict:
    unit, products = PRODUCTS[precision]
    rate = work / told["seconds"]
    return {"what": what, "precision": precision, "tile": repr(tile), "chosen": chosen, "rate": rate,
            "of_roof": rate * products / roof[unit], "error": error, **told}


def _dense(inside, outside, neighbours, weight, block):
    """The same sums in float64, one site after the other."""
    out = block.new_zeros(int(outside.max()) + 1, block.shape[1])
    weight = weight.double()
    for site, near in enumerate(neighbours.tolist()):
        made = outside[site] >= 0
        for tap, q in enumerate(near):
            if q >= 0:
                live = inside[q] >= 0
                part = weight[made, tap][:, live] @ block[inside[q][live].long()]
                out[outside[site][made].long()] += part
    return out
