"""The release, for whoever writes it down; `specxai.__version__`."""

__version__ = "0.1.0"
