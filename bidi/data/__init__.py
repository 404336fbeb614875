"""From corpora to batches: readers, vocabularies, streams, the input pipeline."""
