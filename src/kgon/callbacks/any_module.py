"""Learning coefficients and plateaus of any LightningModule during training, for any logger.

These callbacks do not change training: they leave the module's parameters, buffers, gradients and
modes, and the global generator as they were.
"""

import inspect
import math
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Integral
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities import move_data_to_device

from kgon import streams
from kgon.llc.estimate import check_sampler, estimate_llc
from kgon.llc.inputs import check_settings
from kgon.llc.modules import LossOfParameters, ModuleLoss, estimate_module_llc, one_batch, select
from kgon.llc.verdict import VERDICTS
from kgon.theory.plateaus import Plateau, find_plateaus


class Watch(L.Callback):
    """Evaluates something every `every` optimizer steps, and at the start.

    Args:
        loss: maps the module and the data to the loss, a scalar: the mean over the samples, as in
            `estimate_module_llc`.
        data: a batch, or a DataLoader or Dataset whose samples become one.
        every: optimizer steps from one row to the next.
        eval_mode: evaluate in evaluation mode, without dropout and with batch norm's running
            statistics. If it is False, a module with either raises ValueError.
        name: prefix of the metrics sent to loggers, different for each such callback of a Trainer.

    Attributes:
        rows: a dict for each evaluation, with the step. Lightning's checkpoints contain them.
    """

    def __init__(self, loss: ModuleLoss, data: Any, every: int, eval_mode: bool, name: str):
        given: Any = every
        if not isinstance(given, Integral) or given < 1:
            raise ValueError(f"every must be a whole number >= 1, got {every!r}")
        if not callable(loss):
            raise ValueError(f"loss must be a function of (module, batch), got {loss!r}")
        self.loss = loss
        self.data = data
        self.every = every
        self.eval_mode = eval_mode
        self.name = name
        self.rows: list[dict[str, Any]] = []

    @property
    def state_key(self) -> str:
        return f"{type(self).__name__}({self.name})"

    @abstractmethod
    def look(self, module: L.LightningModule, step: int) -> dict[str, Any]:
        """The entries of this step's row, apart from the step."""

    @abstractmethod
    def metrics(self, row: dict[str, Any]) -> dict[str, float]:
        """The metrics that loggers get of a row."""

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        total = trainer.estimated_stepping_batches
        # In manual optimization a batch may make any number of steps.
        if module.automatic_optimization and self.every > total:
            raise ValueError(
                f"every={self.every} is larger than the run, which makes {int(total)} "
                "optimizer steps; nothing would be recorded after the start"
            )
        self.data = move_data_to_device(one_batch(self.data), module.device)
        if trainer.global_step == 0:
            self.rows = []
            self._record(trainer, module)
        self._last = trainer.global_step

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        # A batch may make no step (accumulated gradients), or several (several optimizers).
        if trainer.global_step // self.every > self._last // self.every:
            self._record(trainer, module)
        self._last = trainer.global_step

    def _record(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        step = trainer.global_step
        with self._watching(module):
            row = {"step": step} | self.look(module, step)
        self.rows.append(row)
        for logger in trainer.loggers:
            logger.log_metrics(self.metrics(row), step=step)

    @contextmanager
    def _watching(self, module: L.LightningModule) -> Iterator[None]:
        """Restore the global generator and all modes afterwards."""
        modes = {each: each.training for each in module.modules()}
        with torch.random.fork_rng([module.device] if module.device.type == "cuda" else []):
            if self.eval_mode:
                module.eval()
            try:
                yield
            finally:
                for each, mode in modes.items():
                    each.training = mode

    def state_dict(self) -> dict[str, Any]:
        return {"rows": list(self.rows)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = list(state_dict["rows"])


class LLC(Watch):
    """Estimates the local learning coefficient of any LightningModule during training.

    Each row has step, mean, stderr, verdict, reason, loss (at w*), rhat, ess and gradients. Loggers
    get mean, stderr and verdict, an index into `kgon.llc.verdict.VERDICTS` (0 is ok).

    Args:
        loss, data, every, eval_mode, name: as in `Watch`.
        seed: of the chains' noise, which also depends on the step.
        settings: other arguments of `estimate_module_llc`, except for observables; by default
            n_chains=4, target=0.1, budget=10_000.
    """

    def __init__(
        self, loss: ModuleLoss, data: Any, every: int, eval_mode: bool = False, *, seed: int = 0,
        name: str = "llc", **settings: Any,
    ):  # fmt: skip
        super().__init__(loss, data, every, eval_mode, name)
        self.seed = seed
        known = [
            name
            for function in (estimate_module_llc, estimate_llc)
            for name, parameter in inspect.signature(function).parameters.items()
            if parameter.kind == parameter.KEYWORD_ONLY and name not in ("seed", "observables")
        ]
        for given in settings:
            if given not in known:
                there = ", ".join(dict.fromkeys(known))
                raise ValueError(f"LLC has no setting {given!r}; there are {there}")
        self.settings = {"n_chains": 4, "target": 0.1, "budget": 10_000} | settings
        elsewhere = ("parameters", "chains_at_once", "sampler", "discard", "batch_size")
        here = {k: v for k, v in self.settings.items() if k not in elsewhere and v is not None}
        check_settings(**({"nbeta": 1.0, "localization": 1.0} | here))
        check_sampler(*(settings.get(name) for name in ("sampler", "lr", "batch_size")))

    def look(self, module: L.LightningModule, step: int) -> dict[str, Any]:
        if not self.rows:
            select(module, self.settings.get("parameters"))
        with torch.no_grad():
            loss = self.loss(module, self.data)
        if self.rows and not bool(loss.isfinite()):  # at the start this is an error, raised below
            numbers = dict.fromkeys(("mean", "stderr", "rhat", "ess", "loss"), math.nan)
            why = "training: the loss at w* is not finite"
            return numbers | {"verdict": "diverged", "reason": why, "gradients": 0}
        keys = streams.member_keys(self.seed, [0], f"llc {step}").reshape(())
        found = estimate_module_llc(module, self.data, self.loss, seed=keys, **self.settings)
        numbers = {name: float(getattr(found, name)) for name in ("mean", "stderr", "rhat", "ess")}
        return numbers | {
            "verdict": found.verdicts, "reason": found.reasons,
            "loss": float(loss), "gradients": int(found.gradients),
        }  # fmt: skip

    def metrics(self, row: dict[str, Any]) -> dict[str, float]:
        return {
            f"{self.name}/mean": row["mean"],
            f"{self.name}/stderr": row["stderr"],
            f"{self.name}/verdict": float(VERDICTS.index(row["verdict"])),
        }


class LossPlateaus(Watch):
    """Records the loss of any LightningModule on fixed data, and finds its plateaus.

    Each row has step and loss; loggers get plateaus/loss.

    Args:
        loss, data, every, eval_mode, name: as in `Watch`.
        tolerance: half the largest range of the loss within a plateau, in units of the loss.
        min_length, window: as in `find_plateaus`.
    """

    def __init__(
        self, loss: ModuleLoss, data: Any, every: int, eval_mode: bool = False, *,
        tolerance: float, min_length: float = 0.01, window: int = 1,
        name: str = "plateaus",
    ):  # fmt: skip
        super().__init__(loss, data, every, eval_mode, name)
        self.settings = {"tolerance": tolerance, "min_length": min_length, "window": window}
        find_plateaus(torch.zeros(1), torch.zeros(1), **self.settings)  # type: ignore[arg-type]

    @property
    def plateaus(self) -> list[Plateau]:
        """The plateaus of the loss recorded so far (`kgon.find_plateaus`)."""
        if not self.rows:
            return []
        step = torch.tensor([row["step"] for row in self.rows])
        loss = torch.tensor([row["loss"] for row in self.rows], dtype=torch.float64)
        return find_plateaus(step, loss, **self.settings)  # type: ignore[arg-type]

    def look(self, module: L.LightningModule, step: int) -> dict[str, Any]:
        if not self.rows:
            LossOfParameters(module, self.data, self.loss, chains_at_once=1)
        with torch.no_grad():
            loss = float(self.loss(module, self.data))
        return {"loss": loss if math.isfinite(loss) else math.nan}

    def metrics(self, row: dict[str, Any]) -> dict[str, float]:
        return {f"{self.name}/loss": row["loss"]}
