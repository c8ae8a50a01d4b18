"""Cars and their drag coefficient: the paper's section 2.2, figures 4 to 6, 10 and 11."""

from __future__ import annotations

from specxai.experiments.study import Study
from specxai.experiments.surfaces import car_set, experiment

SUMMARY = "A net that reads the drag coefficient off a car's surface (section 2.2, figures 4-6, 10, 11)."


def run(study: Study, **sizes) -> None:
    """Train on generated cars, explain the drag coefficient, report; `sizes` as for `surfaces.experiment.run`."""
    experiment.run(study, car_set(), **sizes)
