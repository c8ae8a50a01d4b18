"""Directions of a U-Net's middle block, and the full spectrum of a generator, against what editing code does today.

    python benchmarks/pullback.py unet --extra /path/to/packages     # 64 x 64, middle block, k = 5; needs diffusers
    python benchmarks/pullback.py unet --size 16 --iterations 10     # seconds
    python benchmarks/pullback.py generator                          # 512 latents, 128 x 128
    python benchmarks/pullback.py generator --size 32 --latents 64 --peer-rows 256

unet        The peer is the power method of diffusion editing: in each iteration jacfwd over the k directions, a
            reverse pass over the k images, both of which run the model's encoder again, and an SVD; it stops where the
            vectors, signs included, no longer move.  Angles are to the dense SVD in float64, by torch's reverse mode.
generator   The peer is torch.autograd.functional.jacobian, row by row over the pixels, and an SVD; `--peer-rows` of
            them are timed, and the rest counted as these.  Forward mode by jvp stands beside it.
"""

from __future__ import annotations

import argparse
import sys

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import specxai
from clock import Clock, warm_up
from specxai._vision import import_vision


def unet(size: int) -> nn.Module:
    import_vision("torchvision")  # before diffusers asks for it
    from diffusers import UNet2DModel

    return UNet2DModel(
        sample_size=size, in_channels=3, out_channels=3, layers_per_block=1, block_out_channels=(32, 32, 64, 64),
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D", "DownBlock2D"), norm_num_groups=8,
        up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D", "UpBlock2D"), attention_head_dim=16).eval()


class Reached(Exception):
    """The layer's output is there: what comes after it is not run."""


def encoder(model: nn.Module, layer: str, timestep: int):
    """x -> h, as far as the layer only."""
    def h_of(x: Tensor) -> Tensor:
        found = []

        def stop(module, inputs, output) -> None:
            found.append(output)
            raise Reached

        handle = model.get_submodule(layer).register_forward_hook(stop)
        try:
            model(x, timestep)
        except Reached:
            return found[0]
        finally:
            handle.remove()
        raise AssertionError(f"{layer} was not reached")

    return h_of


def power_method(h_of, x: Tensor, k: int, most: int, threshold: float) -> tuple[Tensor, Tensor, int]:
    """V (n, k), S (k,) and the iterations of the repeated-forward power method."""
    V = torch.linalg.qr(torch.randn(x.numel(), k, generator=torch.Generator().manual_seed(0), dtype=x.dtype))[0].T
    for iteration in range(1, most + 1):  # noqa: B007  (returned)
        before = V

        def along(a: Tensor, V: Tensor = V) -> Tensor:
            return h_of(x + (a @ V).reshape(x.shape)).flatten()

        U = torch.linalg.qr(torch.func.jacfwd(along)(torch.zeros(k, dtype=x.dtype)))[0]

        def onto(y: Tensor, U: Tensor = U) -> Tensor:
            return h_of(y).flatten() @ U

        rows = torch.autograd.functional.jacobian(onto, x).reshape(k, -1)
        _, S, V = torch.linalg.svd(rows, full_matrices=False)
        if torch.dist(before, V) < threshold:
            break
    return V.T.detach(), S.detach(), iteration


def dense_triplets(h_of, x: Tensor, k: int) -> Tensor:
    """V (n, k) of the dense Jacobian in float64, by vmapped reverse mode and the smaller Gram matrix."""
    h, pull = torch.func.vjp(h_of, x)
    m, J = h.numel(), torch.empty(h.numel(), x.numel(), dtype=x.dtype)
    for start in range(0, m, 16):
        rows = torch.zeros(min(16, m - start), m, dtype=x.dtype)
        rows[:, start:].fill_diagonal_(1)
        pulled = torch.func.vmap(pull)(rows.reshape(-1, *h.shape))[0]
        J[start:start + 16] = pulled.detach().reshape(len(rows), -1)  # else J holds every graph
    if m <= x.numel():
        left = torch.linalg.eigh(J @ J.T)[1][:, -k:]
        return torch.linalg.qr(J.T @ left)[0].detach()
    return torch.linalg.eigh(J.T @ J)[1][:, -k:].detach()


def angle(V: Tensor, W: Tensor) -> float:
    """The largest angle between two spaces of orthonormal columns: its sine, exact where it is small."""
    V = torch.linalg.qr(V.detach().double())[0]
    return float(torch.linalg.matrix_norm(V - W @ (W.T @ V), 2))


def run_unet(given: argparse.Namespace) -> None:
    torch.manual_seed(0)
    model, x = unet(given.size), torch.randn(1, 3, given.size, given.size)
    h_of = encoder(model, "mid_block", 3)
    with torch.no_grad():
        print(f"U-Net, {given.size} x {given.size}: {x.numel()} -> {h_of(x).numel()}, k = {given.rank}")

    warm_up()
    with Clock() as ours:
        p = specxai.pullback(model, x, layer="mid_block", rank=given.rank, kwargs={"timestep": 3})
    with Clock() as theirs, sdpa_kernel(SDPBackend.MATH):  # torch has no forward mode of the fused one
        V, S, iterations = power_method(h_of, x, given.rank, given.iterations, given.threshold)
    print(f"generic nodes {p.local.generic_nodes or 'none'}, agreement {p.agreement:.0e}, worst residual "
          f"{p.worst_residual:.0e} λ₁; λ {[round(float(s), 4) for s in p.S]}, power method "
          f"{[round(float(s), 4) for s in S]}")
    angles = ["not asked", f"{angle(V, torch.linalg.qr(p.V.double())[0]):.1e} to the line above"]
    if not given.no_dense:
        with sdpa_kernel(SDPBackend.MATH):
            W = dense_triplets(encoder(model.double().requires_grad_(False), "mid_block", 3), x.double(), given.rank)
        angles = [f"{angle(p.V, W):.1e}", f"{angle(V, W):.1e}"]
    print(f"| | s | s of the process | columns | angle to the dense SVD |\n| --- | --- | --- | --- | --- |\n"
          f"| specxai.pullback, linearisation included | {ours} | {p.products} | {angles[0]} |\n"
          f"| power method, {iterations} iterations | {theirs} | {2 * iterations * given.rank} | {angles[1]} |")
    print(theirs.ratio(ours))


def generator(latents: int, size: int) -> nn.Module:
    """A DCGAN: latents to 4 x 4, doubled until the image has its size."""
    channels, layers = 256, [nn.ConvTranspose2d(latents, 256, 4), nn.BatchNorm2d(256), nn.ReLU()]
    side = 4
    while side < size // 2:
        layers += [nn.ConvTranspose2d(channels, channels // 2, 4, 2, 1), nn.BatchNorm2d(channels // 2), nn.ReLU()]
        channels, side = channels // 2, 2 * side
    layers += [nn.ConvTranspose2d(channels, 3, 4, 2, 1), nn.Tanh()]
    return nn.Sequential(*layers).eval()


def run_generator(given: argparse.Namespace) -> None:
    torch.manual_seed(0)
    model, z = generator(given.latents, given.size), torch.randn(1, given.latents, 1, 1)
    warm_up()
    with Clock() as ours:
        p = specxai.pullback(model, z, rank=None)
    m = p.U.shape[0]
    rows = min(given.peer_rows, m)
    with Clock() as some:
        torch.autograd.functional.jacobian(lambda y: model(y).flatten()[:rows], z)
    tangents = torch.eye(given.latents).reshape(given.latents, *z.shape)
    with Clock() as forward:
        columns = torch.func.vmap(lambda v: torch.func.jvp(model, (z,), (v,))[1].flatten(), chunk_size=32)(tangents)
    with Clock() as dense:
        S = torch.linalg.svd(columns.detach().T, full_matrices=False)[1]
    reverse = some * (m / rows) + dense
    gap = float((p.S - S[:len(p.S)].double()).abs().max() / S[0])
    print(f"{given.latents} latents to {given.size} x {given.size}: {p.summary(2)}")
    print(f"| | s | s of the process |\n| --- | --- | --- |\n"
          f"| specxai.pullback, linearisation and SVD included | {ours} |\n"
          f"| torch.autograd.functional.jacobian, {rows} of {m} rows timed, and SVD | {reverse} |\n"
          f"| torch.func.jvp of 32 columns at a time, and SVD | {forward + dense} |")
    print(f"{reverse.ratio(ours)}; {len(p.S)} singular values differ by at most {gap:.1e} λ₁ "
          "from those of the dense matrix")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("unet", "generator"))
    parser.add_argument("--size", type=int, help="of the image; 64 for the U-Net, 128 for the generator")
    parser.add_argument("--rank", type=int, default=5)
    parser.add_argument("--iterations", type=int, default=100, help="at most, of the power method")
    parser.add_argument("--threshold", type=float, default=1e-4, help="of its movement, where it stops")
    parser.add_argument("--no-dense", action="store_true", help="leave the dense SVD out")
    parser.add_argument("--latents", type=int, default=512)
    parser.add_argument("--peer-rows", type=int, default=2048, help="of the generator's Jacobian that are timed")
    parser.add_argument("--extra", help="a folder of further packages")
    given = parser.parse_args()
    if given.extra:
        sys.path.append(given.extra)
    given.size = given.size or {"unet": 64, "generator": 128}[given.what]
    {"unet": run_unet, "generator": run_generator}[given.what](given)


if __name__ == "__main__":
    main()
