"""Wind turbines and their peak stress: the paper's section 2.2, figures 7, 10 and 11."""

from __future__ import annotations

from specxai.experiments.study import Study
from specxai.experiments.surfaces import experiment, turbine_set

SUMMARY = "A net that reads the peak stress off a wind turbine's surface (section 2.2, figures 7, 10, 11)."


def run(study: Study, **sizes) -> None:
    """Train on generated turbines, explain the peak stress, report; `sizes` as for `surfaces.experiment.run`."""
    experiment.run(study, turbine_set(), **sizes)
