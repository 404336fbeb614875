"""The trainer: loss, optimiser, step, partitioner, checkpoints, loop."""
