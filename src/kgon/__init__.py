"""kgon: phase transitions in the toy model of superposition.

The public names and the subpackages are imported on first use, so that `import kgon` and the
command line's help cost nothing.
"""

from importlib import import_module
from typing import Any

_HOME = {
    "CriticalPoint": "theory.critical",
    "EmpiricalLoss": "theory.loss",
    "HMC": "llc.hmc",
    "LLC": "llc.estimate",
    "Plateau": "theory.plateaus",
    "atlas": "landscape.catalogue",
    "classify": "theory.phases",
    "compose": "cli.from_python",
    "critical_point": "theory.critical",
    "critical_points": "theory.critical",
    "critical_sample_size": "theory.free_energy",
    "estimate_llc": "llc.estimate",
    "estimate_module_llc": "llc.modules",
    "find_plateaus": "theory.plateaus",
    "load": "record.frames",
    "match_plateaus": "theory.plateaus",
    "population_loss": "theory.loss",
    "sample_posterior": "posterior.smc",
    "train": "cli.from_python",
}
_ROOMS = (
    "callbacks", "compiled", "data", "figures", "landscape", "llc", "paper", "posterior", "record",
    "streams", "theory", "tracking", "training",
)  # fmt: skip

__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return import_module("importlib.metadata").version("kgon")
    if name in _HOME:
        return getattr(import_module(f"kgon.{_HOME[name]}"), name)
    if name in _ROOMS:
        return import_module(f"kgon.{name}")
    raise AttributeError(f"module 'kgon' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), "__version__", *__all__, *_ROOMS]
