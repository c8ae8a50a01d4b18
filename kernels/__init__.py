"""Triton kernels, one file an operation; each needs torch and triton, so none is imported here."""
