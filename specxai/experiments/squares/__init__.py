"""The paper's section 2.3 and figures 8 and 9: autoencoders of randomly rotated squares, without and with biases.

>>> from specxai.experiments.squares import reproduce
>>> reproduce("squares")  # doctest: +SKIP
"""

from specxai.experiments.squares.run import reproduce_squares

reproduce = reproduce_squares

__all__ = ["reproduce", "reproduce_squares"]
