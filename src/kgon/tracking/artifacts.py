"""Downloading a run's artifact from W&B, for use as a run's folder."""

from pathlib import Path

from kgon.tracking import account

FORM = "[entity/]project/name:alias"
"""The form of an artifact's name, such as entity/project/run-train-0123456789:latest."""


def download(name: str, folder: Path) -> Path:
    """Download an artifact that `kgon train logger.artifacts=true` logged as run-<run>.

    Returns <folder>/<entity>/<project>/<name>-<version>: an alias such as `latest` can name another
    version later. Existing files are not downloaded again. ValueError if it cannot be downloaded.
    """
    parts = name.split("/")
    if len(parts) not in (2, 3) or not all(parts) or parts[-1].count(":") != 1:
        raise ValueError(f"neither a folder nor the name of an artifact, {FORM}")
    import wandb

    try:
        artifact: wandb.Artifact = account.connect(account.ANSWER_SECONDS).artifact(name)
        if artifact.type != "run":
            raise ValueError(f"an artifact of type {artifact.type}, not run")
        collection = artifact.name.partition(":")[0]
        where = folder / artifact.entity / artifact.project / f"{collection}-{artifact.version}"
        artifact.download(root=str(where), skip_cache=True)
    except (wandb.Error, ValueError, OSError) as error:
        raise ValueError(f"could not download the artifact: {account.first_line(error)}") from error
    return where
