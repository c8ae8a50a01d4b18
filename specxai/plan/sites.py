"""Convolutions and fully connected layers as one thing: sites that read sites through taps."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from specxai._once import once
from specxai.plan.positions import Cells, Geometry, cells, gathering, scattering
from specxai.plan.tables import any_neighbour
from specxai.rules import HeldProduct, LinearNode

FEW_CHANNELS = 4  # a position, too few for a tile or a vector


@dataclass(frozen=True)
class Sites:
    """A weighted node's geometry: units are (channels, positions), grouped by channel, of one input after the other.

    weight        (groups, outputs / groups, inputs / groups, taps)
    inner, outer  spatial shape of the input and of the output
    geometry      a convolution's; None for a fully connected layer
    reads_fine    the input is the geometry's fine side
    lead          units lie (groups, positions, channels of a group) in memory instead, as in a fully connected layer,
                  which has one group
    exact         liveness follows each weight that is zero, as of a causal pattern, and not only what no weight reads
    batch         inputs of the network that a convolution's value holds
    own           nothing else holds the weights, so that an engine may keep them without a copy
    """

    weight: Tensor
    inner: tuple[int, ...]
    outer: tuple[int, ...]
    geometry: Geometry | None
    reads_fine: bool
    lead: bool
    exact: bool = False
    batch: int = 1
    own: bool = False

    @property
    def groups(self) -> int:
        return self.weight.shape[0]

    @property
    def inputs(self) -> int:
        return self.groups * self.weight.shape[2]

    @property
    def outputs(self) -> int:
        return self.groups * self.weight.shape[1]

    @property
    def taps(self) -> int:
        return self.weight.shape[3]

    def table(self, units: Tensor, channels: int) -> Tensor:
        """Rows (flat) as (positions, channels)."""
        if self.lead:
            return units.reshape(self.groups, -1, channels // self.groups).transpose(0, 1).reshape(-1, channels)
        return units.reshape(self.batch, channels, -1).transpose(0, 1).reshape(channels, -1).T

    def flat(self, table: Tensor) -> Tensor:
        """The inverse of `table`."""
        if self.lead:
            return table.reshape(len(table), self.groups, -1).transpose(0, 1).reshape(-1)
        return table.T.reshape(table.shape[1], self.batch, -1).transpose(0, 1).reshape(-1)

    @once
    def reads(self) -> Tensor:
        """(output positions, taps): the input position under each tap, -1 for none."""
        if self.geometry is None:
            return _singles(self.outer[0])
        return gathering(self.geometry) if self.reads_fine else scattering(self.geometry)

    @once
    def feeds(self) -> Tensor:
        """(input positions, taps): the output position that reads it under each tap, -1 for none."""
        if self.geometry is None:
            return _singles(self.inner[0])
        return scattering(self.geometry) if self.reads_fine else gathering(self.geometry)

    @property
    def cells(self) -> Cells | None:
        """Of the fine side, where it has few channels."""
        channels = self.inputs if self.reads_fine else self.outputs
        if self.geometry is None or self.groups > 1 or channels > FEW_CHANNELS:
            return None
        return cells(self.geometry)

    def on(self, device: torch.device) -> Sites:
        """The same with what liveness asks of it on a device."""
        moved = copy(self)
        values = {"_pattern": self._pattern} if self.exact else {"reads": self.reads, "feeds": self.feeds}
        vars(moved).update({name: value.to(device) for name, value in values.items()})
        if not self.exact:
            vars(moved)["_used"] = tuple(used.to(device) for used in self._used)
        return moved

    def reach(self, live: Tensor) -> Tensor:
        """Output units (flat) that depend on a live input unit."""
        if self.exact:
            return self._along(live, self.inputs, self._pattern)
        seen = any_neighbour(self._any(live, self.inputs), self.reads)  # (positions, groups)
        return self.flat((seen[:, :, None] & self._used[0]).flatten(1))

    def demand(self, wanted: Tensor, units: int | None = None) -> Tensor:
        """Input units (flat) that a wanted output unit reads."""
        if self.exact:
            return self._along(wanted, self.outputs, self._pattern.mT)
        seen = any_neighbour(self._any(wanted, self.outputs), self.feeds)
        return self.flat((seen[:, :, None] & self._used[1]).flatten(1))

    @once
    def _used(self) -> tuple[Tensor, Tensor]:
        """(groups, outputs) and (groups, inputs): has the unit a weight that is not zero?"""
        used = self.weight.ne(0).any(3).cpu()
        return used.any(2), used.any(1)

    @once
    def _pattern(self) -> Tensor:
        """(groups, outputs, inputs): 1 where a weight is not zero."""
        return self.weight[..., 0].ne(0).float().cpu()

    def _along(self, units: Tensor, channels: int, pattern: Tensor) -> Tensor:
        """Which units meet a set one through the pattern (groups, to, from)."""
        table = self.table(units, channels).reshape(-1, self.groups, pattern.shape[2])
        met = torch.bmm(pattern, table.permute(1, 2, 0).float())  # (groups, to, positions)
        return self.flat(met.gt(0).permute(2, 0, 1).flatten(1))

    def _any(self, units: Tensor, channels: int) -> Tensor:
        """(positions, groups): is any unit of the group set there?"""
        return self.table(units, channels).reshape(-1, self.groups, channels // self.groups).any(2)


def sites_of(node: LinearNode, own: torch.Size, shape: torch.Size) -> Sites | None:
    """The node as sites, None where it is neither a plain convolution nor a fully connected layer."""
    if 0 in own or 0 in shape:
        return None  # nothing to compute, and how many positions have no channels cannot be told
    if node.fully_connected is not None:
        weight = node.fully_connected.weight.detach()
        return Sites(weight[None, :, :, None], (own[:-1].numel(),), (shape[:-1].numel(),), None, True, True)
    conv = node.convolution
    if conv is None:
        return None
    weight = conv.weight.detach().flatten(2)
    weight = weight.reshape(conv.groups, -1, *weight.shape[1:])
    if conv.transposed:
        weight = weight.transpose(1, 2)
    inner, outer = tuple(own[2:]), tuple(shape[2:])
    fine, coarse = (outer, inner) if conv.transposed else (inner, outer)
    batch, kernel = own[0], tuple(conv.weight.shape[2:])
    if batch == 1:
        geometry = Geometry(fine, coarse, kernel, conv.stride, conv.padding, conv.dilation)
    else:
        geometry = Geometry((batch, *fine), (batch, *coarse), (1, *kernel), (1, *conv.stride), (0, *conv.padding),
                            (1, *conv.dilation), batched=True)
    return Sites(weight, inner, outer, geometry, not conv.transposed, False, batch=batch)


def sites_of_product(product: HeldProduct, own: torch.Size) -> Sites | None:
    """Products with held matrices: each matrix is a group, and the axis that it leaves alone are the positions."""
    held = product.held.detach()
    weight = held if product.from_left else held.mT
    if 0 in own or weight.numel() == 0:
        return None
    positions = own.numel() // (weight.shape[0] * weight.shape[2])
    return Sites(weight[..., None], (positions,), (positions,), None, True, not product.from_left, exact=True)


def _singles(n: int) -> Tensor:
    return torch.arange(n, dtype=torch.int32, device="cpu")[:, None]
