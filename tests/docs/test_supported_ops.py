"""The table of supported operations lists every rule, and says of each what its nodes are."""

from __future__ import annotations

import pytest
import test_rules

import specxai
from specxai.rules import RULES, LinearNode


@pytest.fixture(scope="module")
def table(tool):
    return tool("supported_ops")


def test_every_registered_overload_is_listed(table):
    listed = [name for row in table.rows() for name in row.overloads]
    assert sorted(listed) == sorted(str(op).removeprefix("aten.") for op in RULES)
    page = table.page()
    assert all(f"`{name}`" in page for name in listed)


def test_every_rule_says_what_it_does(table):
    assert [row.name for row in table.rows() if not row.sentence.endswith(".")] == []


@pytest.mark.parametrize("name, map_, structures", [
    ("relu.default", "piecewise linear", ("picks",)), ("gelu.default", "smooth", ("picks",)),
    ("conv2d.default", "linear", ("convolution",)), ("linear.default", "linear", ("fully_connected",)),
    ("cat.default", "linear", ("joined",)), ("avg_pool2d.default", "linear", ("entries",)),
    ("max_pool2d.default", "piecewise linear", ("picks",)), ("softmax.int", "smooth", ()),
    ("mul.Tensor", "curved", ("picks",))])
def test_what_is_known_of_some(table, name, map_, structures):
    row = next(row for row in table.rows() if name in row.overloads)
    assert (row.map, row.structures) == (map_, structures)


def seen(node: LinearNode) -> set[str]:
    """The fields of the table that a node has set."""
    found = {name for name in ("convolution", "fully_connected", "joined") if getattr(node, name) is not None}
    return found | {name for name in ("picks", "entries") for term in node.terms if getattr(term, name) is not None}


@pytest.mark.parametrize("name", test_rules.CASES)
def test_no_node_has_more_than_its_row_says(table, name):
    local = specxai.linearize(*test_rules.build(*test_rules.CASES[name]))
    by_name = {overload: row for row in table.rows() for overload in row.overloads}
    steps = local.captured.program.steps
    for index, node in local.graph.nodes.items():
        step = steps[index]
        if step.target not in RULES:
            step = steps[step.args[0].index]  # one of several results
        row = by_name[str(step.target).removeprefix("aten.")]
        assert seen(node) <= set(row.structures), row
        if node.gate is not None:
            assert row.map == ("smooth" if node.gate.pattern is None else "piecewise linear")
        elif node.curved:
            assert row.map == "curved"
