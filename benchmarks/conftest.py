"""Options of the benchmarks, what every row records, and one subject in memory at a time."""

from __future__ import annotations

import pytest
import torch

from specxai.bench.peers import Subject, find
from specxai.bench.run import machine


def pytest_addoption(parser):
    group = parser.getgroup("specxai benchmarks")
    group.addoption("--full", action="store_true", help="the long ones too, three rounds at least, every peak")
    group.addoption("--cases", default="", help="names of cases, with commas; the default is all")
    group.addoption("--no-memory", action="store_true", help="skip the peaks of memory, each of which repeats its work")
    group.addoption("--threads", type=int, default=torch.get_num_threads(), help="torch's threads")


@pytest.fixture(scope="session")
def options(request):
    """--full, --cases, --no-memory and --threads."""
    torch.set_num_threads(request.config.option.threads)
    return request.config.option


@pytest.fixture(scope="session")
def subject_of(options):
    """Case name -> Subject.  Only the last one is kept: a model and its activations can be large."""
    kept: dict[str, Subject] = {}

    def get(name: str) -> Subject:
        if options.cases and name not in options.cases.split(","):
            pytest.skip("not among --cases")
        if name not in kept:
            kept.clear()
            kept[name] = find(name)
        return kept[name]

    return get


@pytest.fixture(scope="session")
def truths():
    """Case name -> singular values in float64, once a dense Jacobian has been built."""
    return {}


@pytest.fixture
def record(benchmark, options):
    """Add to the row's `extra_info`, after where it ran."""
    where = machine()
    benchmark.extra_info.update({key: where[key] for key in ("threads", "torch", "cpu")})
    return benchmark.extra_info.update
