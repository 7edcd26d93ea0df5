"""Training an ensemble, from built objects."""

import warnings
from pathlib import Path

import lightning as L

from kgon.training import checkpoints
from kgon.training.datamodule import EnsembleData
from kgon.training.model import TMS


def check_trainer(trainer: L.Trainer) -> None:
    """Refuse what an ensemble on one axis cannot be trained with; ValueError says why."""
    if trainer.num_devices * trainer.num_nodes > 1:
        raise ValueError(
            f"trainer.devices={trainer.num_devices}, trainer.num_nodes={trainer.num_nodes}: the "
            "members of a job are one tensor program on one device; start one job a device "
            "(kgon train -m seed=0,1) instead"
        )
    if trainer.gradient_clip_val is not None:
        raise ValueError(
            f"trainer.gradient_clip_val={trainer.gradient_clip_val}: the norm of all gradients "
            "would couple the members of an ensemble"
        )
    if trainer.max_epochs == 0:
        raise ValueError("trainer.max_epochs must be 1: one pass over the data is max_steps steps")
    if trainer.accumulate_grad_batches != 1:
        raise ValueError(
            f"trainer.accumulate_grad_batches={trainer.accumulate_grad_batches}: a block of "
            "minibatches is already many optimizer steps; set batch_size instead"
        )


def train(model: TMS, data: EnsembleData, trainer: L.Trainer, directory: Path) -> None:
    """Train to the end, from the directory's last checkpoint if it holds one.

    Raises:
        ValueError: a trainer that `check_trainer` refuses, a checkpoint of another shape.
        FloatingPointError: every member diverged.
    """
    check_trainer(trainer)
    checkpoint = checkpoints.newest(directory / checkpoints.FOLDER)
    with warnings.catch_warnings():
        # Blocks are computed, not loaded: there is nothing for worker processes to do.
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        # One process is meant, also where there is a cluster.
        warnings.filterwarnings("ignore", message=".*`srun` command is available")
        # Lightning's own use of torch's pytree.
        warnings.filterwarnings(
            "ignore", message=".*LeafSpec.* is deprecated", category=FutureWarning
        )
        trainer.fit(model, data, ckpt_path=checkpoint)
