"""The paper's section 2.3: autoencoded rotated squares, figures 8 and 9.

>>> from specxai.squares import reproduce
>>> reproduce("squares")  # doctest: +SKIP
"""

from specxai.squares.reproduce import reproduce_squares

reproduce = reproduce_squares

__all__ = ["reproduce", "reproduce_squares"]
