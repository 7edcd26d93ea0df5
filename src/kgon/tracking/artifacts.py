"""Downloading a run's artifact from W&B, for use as a run's folder."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kgon.files import write_text
from kgon.tracking import account

RETRIES = 5
"""How often a refused download is tried again, which takes half a minute."""

_NAME = ".artifact"
"""A file in a downloaded artifact's folder, with the artifact's name."""

FORM = "[entity/]project/name:alias"
"""The form of an artifact's name, such as entity/project/run-train-0123456789:latest."""


def download(name: str, folder: Path) -> Path:
    """Download an artifact that `kgon train logger.artifacts=true` logged as run-<run>.

    Its name is stored in the folder, for `downloaded_artifact`.

    Returns <folder>/<entity>/<project>/<name>-<version>: an alias such as `latest` can name another
    version later. Existing files are not downloaded again. ValueError if it cannot be downloaded.
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
    """Let the client give up a refused request after RETRIES; by itself it tries for 20 minutes."""
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
