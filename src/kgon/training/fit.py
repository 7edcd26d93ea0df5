"""Training an ensemble, given its model, data and trainer."""

import warnings
from pathlib import Path

import lightning as L

from kgon.training import checkpoints
from kgon.training.datamodule import EnsembleData
from kgon.training.model import TMS


def check_trainer(trainer: L.Trainer) -> None:
    """ValueError for a trainer that cannot train an ensemble."""
    if trainer.num_devices * trainer.num_nodes > 1:
        raise ValueError(
            f"trainer.devices={trainer.num_devices}, trainer.num_nodes={trainer.num_nodes}: all "
            "members of a job train on one device; start one job per device instead (kgon train -m "
            "seed=0,1)"
        )
    if trainer.gradient_clip_val is not None:
        raise ValueError(
            f"trainer.gradient_clip_val={trainer.gradient_clip_val}: clipping by the norm of all "
            "gradients would couple the members of an ensemble; set it to null"
        )
    if trainer.max_epochs == 0:
        raise ValueError(
            "trainer.max_epochs must be 1 (got 0): one epoch makes all max_steps steps"
        )
    if trainer.fast_dev_run:  # type: ignore[attr-defined]
        raise ValueError(
            "trainer.fast_dev_run must be false: it would record no metrics and make one block of "
            "steps only; use trainer=debug instead"
        )
    if trainer.accumulate_grad_batches != 1:
        raise ValueError(
            f"trainer.accumulate_grad_batches={trainer.accumulate_grad_batches}: a block of "
            "minibatches already makes many optimizer steps; set batch_size instead"
        )


def train(
    model: TMS,
    data: EnsembleData,
    trainer: L.Trainer,
    directory: Path,
    extended: Path | None = None,
) -> None:
    """Train to the end, from the last checkpoint in `directory` if there is one, else from the last
    one in `extended`, a shorter run that this one continues.

    Raises:
        FloatingPointError: every member diverged.
        EndedEarly: the trainer (max_time, limit_train_batches) or a callback ended the training.
    """
    check_trainer(trainer)
    checkpoint = checkpoints.newest(directory / checkpoints.FOLDER)
    if checkpoint is None and extended is not None:
        checkpoint = checkpoints.newest(extended / checkpoints.FOLDER)
    with warnings.catch_warnings():
        # A job is one process, on a cluster too.
        warnings.filterwarnings("ignore", message=".*`srun` command is available")
        # The data module's blocks start at the trainer's step.
        warnings.filterwarnings("ignore", message=".*your dataloader is not resumable")
        # Lightning's own use of torch's pytree.
        warnings.filterwarnings(
            "ignore", message=".*LeafSpec.* is deprecated", category=FutureWarning
        )
        trainer.fit(model, data, ckpt_path=checkpoint)
    if trainer.global_step < trainer.max_steps:
        saved = checkpoints.newest(directory / checkpoints.FOLDER) is not None
        raise checkpoints.EndedEarly(
            f"training ended at step {trainer.global_step} of {trainer.max_steps}; the same "
            f"command {'goes on from there' if saved else 'starts again: nothing was saved'}"
        )
