"""Local learning coefficients, with verdicts."""
