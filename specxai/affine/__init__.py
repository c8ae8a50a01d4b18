"""The affine map of a network at one input, and what is asked of it."""
