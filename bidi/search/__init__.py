"""Beam search over pairs of streams: it knows nothing of models."""
