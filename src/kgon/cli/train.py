"""kgon train: an ensemble, its plateaus, phases and learning coefficients."""

from kgon.launch import command_line
from kgon.launch.train import check, task


def main() -> None:
    """Console entry: Hydra overrides from the command line."""
    command_line.run("train", task, check)
