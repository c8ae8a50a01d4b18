"""The paper's sections 2.3 and 3.1, figures 8 and 9: autoencoders of randomly rotated squares, without and with biases.

>>> from specxai.experiments import Study
>>> from specxai.experiments.squares import run
>>> run(Study("out/squares", "squares", quick=True))  # doctest: +SKIP
"""

from specxai.experiments.squares.experiment import OPTIONS, SUMMARY, run

__all__ = ["OPTIONS", "SUMMARY", "run"]
