"""Compiled loops: the exact losses and the training step."""
