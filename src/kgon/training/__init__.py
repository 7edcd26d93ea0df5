"""Ensembles in Lightning: the model, its steps, data, starts, checkpoints."""
