"""Every token's detached Jacobian block: shared adjoint products against Lanczos for each token by jvp and vjp.

    python benchmarks/tokens.py                                   # d = 256, 8 layers, 64 tokens, top 10 of each
    python benchmarks/tokens.py --layers 2 --tokens 16 --peer 1   # seconds

The model is a Llama in plain PyTorch.  SpecXAI linearises it unmodified with frozen gates.  The peer differentiates the
same model with the norms' scales, the attention's patterns and the activated factors detached by hand, token by token,
by Golub-Kahan-Lanczos with full reorthogonalisation until the residuals meet the tolerance; `--peer` tokens are timed,
and the rest counted as the mean of these.  Both give singular values, which are compared.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

import specxai
from clock import Clock, warm_up
from llama import Llama


def lanczos(model: Llama, x: Tensor, token: int, k: int, tol: float, generator: torch.Generator) -> tuple[Tensor, int]:
    """The k leading singular values of ∂y/∂x_token of the detached model, and the steps of Golub-Kahan-Lanczos."""
    def f(part: Tensor) -> Tensor:
        return model(torch.cat([x[:, :token], part[None, None], x[:, token + 1:]], 1), detached=True)[0]

    at = x[0, token]
    image, pull = torch.func.vjp(f, at)
    d = len(at)
    v = torch.randn(d, generator=generator).to(x)
    V, U, B = [v / v.norm()], [], torch.zeros(d + 1, d + 1, dtype=torch.float64)
    for step in range(min(d, len(image))):
        u = outside(torch.func.jvp(f, (at,), (V[-1],))[1], U, step and B[step - 1, step] * U[-1])
        B[step, step] = u.norm().detach()
        U.append((u / u.norm()).detach())
        v = outside(pull(U[-1])[0], V, B[step, step] * V[-1])
        B[step, step + 1] = v.norm().detach()
        if step + 1 >= k:
            left, s, _ = torch.linalg.svd(B[:step + 1, :step + 1])
            if bool((B[step, step + 1] * left[-1, :k].abs() <= tol * s[0]).all()) or step + 1 == d:
                return s[:k].detach(), step + 1
        V.append((v / v.norm()).detach())
    return torch.linalg.svdvals(B)[:k].detach(), len(U)


def outside(vector: Tensor, basis: list[Tensor], known: Tensor) -> Tensor:
    vector = vector - known
    if basis:
        Q = torch.stack(basis, 1)
        vector = vector - Q @ (Q.mT @ vector)
    return vector


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("d", 256), ("layers", 8), ("heads", 8), ("kv-heads", 4), ("hidden", 688), ("tokens", 64),
                          ("rank", 10), ("peer", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--tol", type=float, default=1e-3)
    given = parser.parse_args()
    torch.manual_seed(0)
    model = Llama(given.d, given.layers, given.heads, given.kv_heads, given.hidden).eval()
    x = torch.randn(1, given.tokens, given.d)

    warm_up()
    with Clock() as linearised:
        local = specxai.linearize(model, x, gates="frozen")
    with Clock() as decomposed:
        found = specxai.tokens(local, rank=given.rank, tol=given.tol)
    ours = linearised + decomposed

    generator = torch.Generator().manual_seed(0)
    chosen = torch.linspace(0, given.tokens - 1, given.peer).long().tolist()
    timed, steps, gap = Clock(), 0, 0.0
    for token in chosen:
        with timed:
            s, taken = lanczos(model, x, token, given.rank, given.tol, generator)
        steps += taken
        gap = max(gap, float((found.S[token].double() - s).abs().max() / s[0]))
    theirs = timed * (given.tokens / len(chosen))
    print(f"{found}; generic nodes {local.generic_nodes or 'none'}, agreement {local.agreement:.0e}")
    print(f"| | s | s of the process | columns | worst residual, σ₁ |\n| --- | --- | --- | --- | --- |\n"
          f"| specxai, linearisation of {linearised.wall:.2f} s included | {ours} | {found.products} | "
          f"{found.worst_residual:.0e} |\n"
          f"| Lanczos by jvp and vjp, {len(chosen)} of {given.tokens} tokens timed | {theirs} | "
          f"{2 * steps // len(chosen) * given.tokens} | {given.tol:.0e} |")
    print(f"{theirs.ratio(ours)}; singular values differ by at most {gap:.1e} σ₁")


if __name__ == "__main__":
    main()
