"""`python -m specxai`."""

from specxai.cli import entry

entry()
