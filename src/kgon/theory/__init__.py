"""Exact mathematics of the toy model: losses, critical points, phases, plateaus, free energies."""
