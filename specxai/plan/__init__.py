"""The plan of a map between values: stages over live units, as data that any engine runs.

Passes are functions from data to data: `structure_of` and `live_units` (which units are reached and wanted), `draft`
(stages over rows), `merged` (residual adds), `laid_out` (one arena).  `Planner` calls them in this order.

>>> import torch, specxai
>>> from specxai.plan import Planner
>>> net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2)).eval()
>>> graph = specxai.linearize(net, torch.ones(1, 3)).graph
>>> plan = Planner(graph).plan([graph.input], [max(graph.nodes)], [])
>>> [type(stage).__name__ for stage in plan.stages]
['Gather', 'Gather']
"""

from __future__ import annotations

from specxai.plan.layout import Plan
from specxai.plan.planner import Planner
from specxai.plan.stages import Gather, LowRank, Opaque, Place, Stage, Sum, Tap

__all__ = ["Gather", "LowRank", "Opaque", "Place", "Plan", "Planner", "Stage", "Sum", "Tap"]
