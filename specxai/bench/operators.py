"""R by other people's means: `torch.func`, autograd on a repeated batch, and a gated chain of whole convolutions."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from specxai.operators import LinearOperator


class _Reached(Exception):
    """Ends a forward pass at the layer."""


class UpTo:
    """x -> the activation at `layer` (the model's output for None); nothing after the layer runs."""

    def __init__(self, model: nn.Module, layer: str | None) -> None:
        self.model, self.layer = model, layer

    def __call__(self, x: Tensor) -> Tensor:
        if self.layer is None:
            return self.model(x)
        seen: list[Tensor] = []

        def stop(module, inputs, output):
            seen.append(output)
            raise _Reached

        hook = self.model.get_submodule(self.layer).register_forward_hook(stop)
        try:
            self.model(x)
        except _Reached:
            pass
        finally:
            hook.remove()
        return seen[0]


class TorchFunc(LinearOperator):
    """R of `function` at x by torch.func, `chunk` columns at a time under vmap.

    forward   "linearize" traces the tangent map once (seconds), "jvp" repeats the forward pass for each chunk
    """

    def __init__(self, function, x: Tensor, chunk: int, forward: str = "linearize") -> None:
        value, pull = torch.func.vjp(function, x)
        super().__init__((value.numel(), x.numel()), x.dtype, x.device, block_size=chunk)
        self._input, self._output = x.shape, value.shape
        if forward == "linearize":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about get_attr nodes, from its constant folding
                push = torch.func.linearize(function, x)[1]
        else:
            def push(v):
                return torch.func.jvp(function, (x,), (v,))[1]
        self._push = torch.vmap(push)
        self._pull = torch.vmap(lambda u: pull(u)[0])

    def _matmat(self, X: Tensor) -> Tensor:
        return self._run(self._push, X, self._input)

    def _rmatmat(self, Y: Tensor) -> Tensor:
        return self._run(self._pull, Y, self._output)

    @torch.no_grad()
    def _run(self, product, block: Tensor, shape: torch.Size) -> Tensor:
        return product(block.T.reshape(-1, *shape)).flatten(1).T.contiguous()


class AutogradBatch(LinearOperator):
    """R by torch.autograd.grad on x repeated `chunk` times; forward products by differentiating the adjoint's."""

    def __init__(self, function, x: Tensor, chunk: int) -> None:
        with torch.enable_grad():
            self._x = x.expand(chunk, *x.shape[1:]).clone().requires_grad_()
            self._value = function(self._x)
            self._weights = torch.zeros_like(self._value).requires_grad_()
            self._pulled = torch.autograd.grad(self._value, self._x, self._weights, create_graph=True)[0]
        super().__init__((self._value[0].numel(), x.numel()), x.dtype, x.device, block_size=chunk)

    def _matmat(self, X: Tensor) -> Tensor:
        return self._grad(self._pulled, self._weights, X)

    def _rmatmat(self, Y: Tensor) -> Tensor:
        return self._grad(self._value, self._x, Y)

    def _grad(self, of: Tensor, at: Tensor, block: Tensor) -> Tensor:
        seed = torch.zeros_like(of)
        seed[: block.shape[1]] = block.T.reshape(-1, *of.shape[1:])
        return torch.autograd.grad(of, at, seed, retain_graph=True)[0][: block.shape[1]].flatten(1).T.contiguous()


# One step of a chain: (probe batch forward, cotangent batch back).
Step = tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]


class GatedChain(LinearOperator):
    """R of a sequential stack as one would write it by hand: whole convolutions on a channels_last probe batch, batch
    norm folded into their weights, gates as masks, max-pooling by index."""

    def __init__(self, stages: nn.Sequential, x: Tensor, chunk: int) -> None:
        self._steps: list[Step] = []
        self._input, value = x.shape, x
        modules = list(stages)
        with torch.no_grad():
            while modules:
                module, *modules = modules
                if isinstance(module, nn.Conv2d):
                    norm = modules.pop(0) if modules and isinstance(modules[0], nn.BatchNorm2d) else None
                    self._steps.append(_convolution(module, norm, value.shape))
                    value = module(value)
                    value = value if norm is None else norm(value)
                elif isinstance(module, nn.ReLU):
                    mask = (value > 0).to(value)
                    self._steps.append((lambda z, m=mask: z.mul_(m), lambda z, m=mask: z * m))
                    value = value.relu()
                elif isinstance(module, nn.MaxPool2d):
                    value, step = _pooling(module, value)
                    self._steps.append(step)
                elif isinstance(module, nn.Dropout):
                    continue
                else:
                    raise TypeError(f"{type(module).__name__} has no place in a chain of convolutions")
        self._output = value.shape
        super().__init__((value.numel(), x.numel()), x.dtype, x.device, block_size=chunk)

    def _matmat(self, X: Tensor) -> Tensor:
        return self._run([push for push, _ in self._steps], X, self._input)

    def _rmatmat(self, Y: Tensor) -> Tensor:
        return self._run([pull for _, pull in reversed(self._steps)], Y, self._output)

    @torch.no_grad()
    def _run(self, steps, block: Tensor, shape: torch.Size) -> Tensor:
        z = block.T.reshape(-1, *shape[1:]).contiguous(memory_format=torch.channels_last)
        for step in steps:
            z = step(z)
        return z.contiguous().flatten(1).T.contiguous()


def chain_of(model: nn.Module, layer: str | None) -> nn.Sequential | None:
    """The modules up to the layer where they are a plain sequence of the model's own `features`, else None."""
    features = getattr(model, "features", None)
    if layer is None or not layer.startswith("features.") or not isinstance(features, nn.Sequential):
        return None
    stages = features[: int(layer.split(".")[1]) + 1]
    known = (nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.MaxPool2d, nn.Dropout)
    return stages if all(isinstance(module, known) for module in stages) else None


def _convolution(conv: nn.Conv2d, norm: nn.BatchNorm2d | None, shape: torch.Size) -> Step:
    weight = conv.weight.detach()
    if norm is not None:
        weight = weight * (norm.weight / (norm.running_var + norm.eps).sqrt())[:, None, None, None]
    weight = weight.contiguous(memory_format=torch.channels_last)
    settings = {"stride": conv.stride, "padding": conv.padding, "dilation": conv.dilation, "groups": conv.groups}
    out = conv(torch.zeros(shape).to(conv.weight)).shape
    # What the stride leaves over at the far edge.
    rest = [(n + 2 * p - d * (k - 1) - 1) - (m - 1) * s for n, m, p, d, k, s in zip(
        shape[2:], out[2:], conv.padding, conv.dilation, conv.kernel_size, conv.stride, strict=True)]
    return (lambda z: F.conv2d(z, weight, **settings),
            lambda z: F.conv_transpose2d(z, weight, output_padding=rest, **settings))


def _pooling(pool: nn.MaxPool2d, value: Tensor) -> tuple[Tensor, Step]:
    pooled, index = F.max_pool2d(value, pool.kernel_size, pool.stride, pool.padding, pool.dilation, pool.ceil_mode,
                                 return_indices=True)
    inner, outer = value.shape[2:], pooled.shape[2:]
    flat = index.flatten(2)

    def push(z: Tensor) -> Tensor:
        found = z.flatten(2).gather(2, flat.expand(len(z), -1, -1)).unflatten(2, outer)
        return found.contiguous(memory_format=torch.channels_last)

    def pull(z: Tensor) -> Tensor:
        back = z.new_zeros(*z.shape[:2], inner.numel())
        back.scatter_add_(2, flat.expand(len(z), -1, -1), z.flatten(2))
        return back.unflatten(2, inner).contiguous(memory_format=torch.channels_last)

    return pooled, (push, pull)
