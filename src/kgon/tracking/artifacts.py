"""A run's artifact on W&B, brought here: a folder as good as the run's own."""

from pathlib import Path

from kgon.tracking import account

FORM = "[entity/]project/name:alias"
"""How an artifact is named: entity/project/run-train-0123456789:latest, say."""


def download(name: str, folder: Path) -> Path:
    """Download what `kgon train logger.artifacts=true` logged as run-<run>.

    An alias such as latest may name another version tomorrow, so the folder is named after the
    version. What is there already, and whole, is not downloaded again.

    Args:
        name: of the artifact, as in FORM.
        folder: the artifact goes to <entity>/<project>/<name>-<version> in it.

    Returns:
        That folder.

    Raises:
        ValueError: no such artifact, or one of another type; no key; the server does not answer.
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
