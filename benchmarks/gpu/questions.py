"""What is asked of a card beside networks and kernels: a wide MLP, orthonormalisation, projections, and a data
set.  The first peer of a question is what others are compared with."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import torch
from timing import Clock, tf32
from torch import Tensor, nn

import specxai
from specxai.backends.cuda import CudaEngine
from specxai.backends.products import PlannedBackend
from specxai.native import cuda
from specxai.svd import orth
from specxai.zoo.digits import digits_data, load_digits_net

SIDES = 4  # columns that are checked in float64


def rows(clock: Clock, dry: bool) -> Iterator[dict]:
    for ask in (_mlp, _orthonormal, _projection, _digits):
        if clock.left < 0:
            yield {"case": ask.__doc__.splitlines()[0].rstrip("."), "peer": "all", "left_out": "no time was left"}
            continue
        yield from ask(clock, dry)


def _timed(clock: Clock, case: str, question: str, peer: str, work: Callable[[], object], error: float, **more) -> dict:
    return {"case": case, "question": question, "peer": peer, "error": error, **more, **clock.of(work, 0.3, most=10)}


def _mlp(clock: Clock, dry: bool) -> Iterator[dict]:
    """MLP 8 x 8192, half of the units live."""
    width, depth, columns = (32, 3, 4) if dry else (8192, 8, 256)
    case = f"MLP {depth} x {width}, {columns} columns"
    torch.manual_seed(0)
    with torch.device(clock.device):
        layers = [nn.Linear(width, width) for _ in range(depth)]
        net = nn.Sequential(*(part for layer in layers for part in (layer, nn.ReLU()))).eval()
        x, X = torch.randn(1, width), torch.randn(width, columns)
    gates, h = [], x
    for layer in layers:
        h = layer(h).relu().detach()
        gates.append((h[0] > 0)[:, None])
    weights = [layer.weight.detach() for layer in layers]

    def chain(matrices: list[Tensor], block: Tensor) -> Tensor:
        for W, gate in zip(matrices, gates, strict=True):
            block = (W @ block) * gate
        return block

    want = X[:, :SIDES].double()
    for W, gate in zip(weights, gates, strict=True):
        want = (W.double() @ want) * gate

    def off(got: Tensor) -> float:
        return float((got[:, :SIDES].double() - want).norm() / want.norm())

    gflop = 2 * depth * width**2 * columns / 1e9
    graph = specxai.linearize(net, x, backend="torch").graph
    ends = [graph.input], [max(graph.nodes)], []
    half = [W.bfloat16() for W in weights]
    for question, dense, allowed, precisions in (("fp32-grade", weights, False, ("tf32x3", "bf16x6", "fp32")),
                                                 ("tf32", weights, True, ("tf32",)),
                                                 ("bf16", half, False, ("bf16",))):
        block = X.to(dense[0].dtype)
        with tf32(allowed):
            yield _timed(clock, case, question, "dense gated chain", lambda b=block, m=dense: chain(m, b),
                         off(chain(dense, block)), gflop=gflop)
        for precision in precisions:
            engine = CudaEngine(torch.float32, clock.device, precision)
            products = PlannedBackend(graph, engine).products(*ends)
            yield _timed(clock, case, question, f"specxai cuda {precision}", lambda p=products: p.matmat(X),
                         off(products.matmat(X)), gflop=products.flops * columns / 1e9)


def _orthonormal(clock: Clock, dry: bool) -> Iterator[dict]:
    """Orthonormalisation of 150,528 x 64."""
    m, b = (300, 8) if dry else (150_528, 64)
    X = torch.randn(m, b, device=clock.device)
    unit = torch.eye(b, dtype=torch.float64, device=clock.device)
    kind = "compiled kernels" if cuda.takes(X) else "torch's products"
    for peer, work in (("torch.linalg.qr", lambda: torch.linalg.qr(X)),
                       (f"CholeskyQR2, {kind}", lambda: orth.tall_qr(X))):
        Q = work()[0].double()
        error = float((Q.mT @ Q - unit).abs().max())
        yield _timed(clock, f"orthonormalisation {m} x {b}", "QR", peer, work, error, gflop=4 * m * b**2 / 1e9)


def _projection(clock: Clock, dry: bool) -> Iterator[dict]:
    """Two projections of 4 columns out of 500 vectors."""
    m, q, b = (300, 12, 4) if dry else (150_528, 500, 4)
    basis = torch.linalg.qr(torch.randn(m, q, device=clock.device))[0].mT.contiguous()
    X = torch.randn(m, b, device=clock.device)

    def products() -> Tensor:
        left = X
        for _ in range(2):
            left = left - basis.mT @ (basis @ left)
        return left

    def compiled() -> Tensor:
        H = cuda.coefficients(basis, X)
        left, again = cuda.reorthogonalise(basis, H, X)
        return cuda.subtract(basis, again, left, out=left)

    case, moved = f"projection out of {q} vectors of {m}, {b} columns", basis.numel() * 4
    for peer, work, readings in (("four products", products, 4), ("compiled, three readings", compiled, 3)):
        if work is compiled and not cuda.takes(X):
            yield {"case": case, "question": "twice", "peer": peer, "left_out": cuda.available()[1] or "no CUDA device"}
            continue
        left = work().double()
        error = float((basis.double() @ left).norm() / left.norm())
        told = _timed(clock, case, "twice", peer, work, error)
        yield told | {"bytes_a_second": readings * moved / told["seconds"]}


def _digits(clock: Clock, dry: bool) -> Iterator[dict]:
    """A data set: 1,000 digits, seconds of each."""
    count, alone = (3, 2) if dry else (1000, 20)
    net, parts = load_digits_net(), digits_data()
    x = torch.cat([part.x for part in parts])[:count]
    there, images = copy.deepcopy(net).to(clock.device), x.to(clock.device)
    case, layer = f"a data set: {count:,} digits, seconds of each", "classifier.1"
    wanted = [specxai.explain(net, one[None], layer) for one in x[:alone]]
    for peer, inputs, work in (
            ("one at a time on the CPU", alone, lambda: [specxai.explain(net, one[None], layer) for one in x[:alone]]),
            ("explain_many", count, lambda: list(specxai.explain_many(there, images, layer)))):
        found = work()
        off = max(float((a.S - b.S).abs().max() / a.S[0]) for a, b in zip(wanted, found, strict=False))
        told = clock.of(work, 0.3, most=3, warm=False)
        told = {name: told[name] / inputs if name in ("seconds", "iqr") else told[name] for name in told}
        yield {"case": case, "question": "explained", "peer": peer, "error": off, **told}
