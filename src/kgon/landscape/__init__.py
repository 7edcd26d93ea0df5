"""The search for critical points of the population loss, and paths and rates between them."""
