"""Downloading a run's artifact from W&B, for use as a run's folder."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kgon.files import write_text
from kgon.tracking import account

RETRIES = 5
"""How often a refused download is tried again; five times take half a minute."""

_NAME = ".artifact"
"""The file in a downloaded artifact's folder that has the artifact's name."""

FORM = "[entity/]project/name:alias"
"""The form of an artifact's name, as in entity/project/run-train-0123456789:latest."""


def download(name: str, folder: Path) -> Path:
    """Download an artifact that `kgon train logger.artifacts=true` logged as run-<run>.

    Returns its folder <folder>/<entity>/<project>/<name>-<version>, in which its name is stored for
    `downloaded_artifact`. The version is in the path because an alias such as `latest` can mean
    another version later. Existing files are not downloaded again.

    Raises:
        ValueError: the name has the wrong form, or the artifact cannot be downloaded.
    """
    parts = name.split("/")
    if len(parts) not in (2, 3) or not all(parts) or parts[-1].count(":") != 1:
        raise ValueError(f"neither a folder nor the name of an artifact, {FORM}")
    import wandb

    refused: tuple[type[Exception], ...] = (ValueError, *account.client_errors())
    try:
        artifact: wandb.Artifact = account.connect(account.ANSWER_SECONDS).artifact(name)
        if artifact.type != "run":
            raise ValueError(f"an artifact of type {artifact.type}, not run")
        collection = artifact.name.partition(":")[0]
        where = folder / artifact.entity / artifact.project / f"{collection}-{artifact.version}"
        with _giving_up():
            artifact.download(root=str(where), skip_cache=True)
        version = f"{collection}:{artifact.version}"
        write_text(where / _NAME, f"{artifact.entity}/{artifact.project}/{version}")
    except refused as error:
        raise ValueError(f"could not download the artifact: {account.first_line(error)}") from error
    return where


@contextmanager
def _giving_up() -> Iterator[None]:
    """Let the client give up a refused request after RETRIES; by default it takes 20 minutes."""
    from wandb.sdk.artifacts import artifact
    from wandb.sdk.artifacts.storage_policies import wandb_storage_policy

    modules: list[Any] = [artifact, wandb_storage_policy]
    make = modules[0].make_http_session

    def make_session() -> Any:
        session = make()
        for adapter in session.adapters.values():
            adapter.max_retries = adapter.max_retries.new(total=RETRIES)
        return session

    for module in modules:
        module.make_http_session = make_session
    try:
        yield
    finally:
        for module in modules:
            module.make_http_session = make


def downloaded_artifact(folder: Path) -> str | None:
    """entity/project/name:version of the artifact that was downloaded to a folder, or None."""
    file = folder / _NAME
    return file.read_text() if file.exists() else None
