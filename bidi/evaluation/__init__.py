"""Trained models at work: restoring, search, agreement, labelling; and how good outputs are."""
