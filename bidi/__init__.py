"""Sequence-to-sequence models that write their output from both ends at once."""

__version__ = "0.1.0"
