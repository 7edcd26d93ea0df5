"""Samples of the Bayesian posterior, and its phases against the sample size."""
