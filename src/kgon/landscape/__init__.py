"""Searching the population loss for critical points, and the paths and rates between them."""
