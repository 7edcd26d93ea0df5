"""kgon: phase transitions in the toy model of superposition.

The public names below are imported on first use, so that `import kgon` and the command line's help
cost nothing.
"""

from importlib import import_module
from typing import Any

_HOME = {
    "CriticalPoint": "critical",
    "EmpiricalLoss": "loss",
    "LLC": "llc",
    "Plateau": "plateaus",
    "classify": "phases",
    "critical_point": "critical",
    "critical_points": "critical",
    "critical_sample_size": "free_energy",
    "estimate_llc": "llc",
    "find_plateaus": "plateaus",
    "match_plateaus": "plateaus",
    "population_loss": "loss",
    "sample_posterior": "posterior",
}

__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'kgon' has no attribute {name!r}")
    return getattr(import_module(f"kgon.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
