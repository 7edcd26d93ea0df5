"""Opening the W&B run of a job: its mode, its id, and the checks of the logger's settings."""

import inspect
import os
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from kgon.tracking import account
from kgon.tracking.account import first_line
from kgon.tracking.outbox import Outbox
from kgon.tracking.tracker import Tracker, made_by

MODES = ("auto", "online", "offline", "disabled")
PROJECT = "kgon"

_USUAL = {
    "directory", "mode", "artifacts", "system_metrics", "project", "entity", "id", "name", "group",
    "job_type", "tags", "settings",
}  # fmt: skip
"""The settings in conf/logger/wandb.yaml."""


def wandb_logger(
    directory: str,
    mode: str,
    settings: dict[str, Any],
    artifacts: bool,
    system_metrics: bool = False,
    **init: Any,
) -> Tracker:
    """Start the W&B run of the job in `directory`.

    Args:
        directory: the job's directory.
        mode: online (needs a key; offline if the server does not answer), offline, disabled, or
            auto, which is the mode that the W&B client is configured for, but offline if there is
            no key or no answer.
        settings, init: arguments of `wandb.Settings` and `wandb.init`. A missing project, id or
            tags are those that the W&B client is configured with, else PROJECT, the id of the
            attempt, and none.
        artifacts: whether weights and tables are logged as artifacts.
        system_metrics: whether the client measures processor, memory and GPU.

    Raises:
        ValueError: the mode is unknown, or is online and there is no key; or W&B has another run
            with the given id.
    """
    import wandb

    _check_mode(mode)
    outbox = Outbox(Path(directory).absolute())
    init = {name: value or None for name, value in init.items()}
    # By default the client names the commit of the folder that the run is in.
    own = {"disable_git": True, "git_commit": made_by(outbox).get("commit")}
    own["x_disable_stats"] = not system_metrics
    init |= {"dir": directory, "settings": own | settings, "reinit": "create_new"}
    configured = account.configured()
    if awaited():
        # The agent has chosen the run's id and the sweep's project.
        init |= {"id": None, "project": None, "entity": None}
    if mode in ("auto", "online"):
        mode = _reachable_mode(mode, outbox)
    if mode == "disabled":
        run = account.start_run("disabled", **init)
        return Tracker(run, outbox, None, artifacts, recorded=False)
    init["id"] = init.get("id") or configured.run_id or outbox.own_id()
    init["project"] = init.get("project") or configured.project or PROJECT
    init["entity"] = init.get("entity") or configured.entity
    with ExitStack() as until_started:
        lock = outbox.lock()
        if lock is not None:
            until_started.enter_context(lock)
        elif mode == "online":
            mode = "offline"
            _say_offline(f"kgon sync is sending {outbox.directory}", outbox)
        mine = awaited() or init["id"] == outbox.own_id() or outbox.has_run(init["id"])
        init["resume"] = "allow" if mine else "never"
        # Before the run is made, so that a job that is killed now resumes it.
        outbox.add_run(init)
        try:
            if mode == "online":
                run = open_online(outbox, init)
            else:
                # All rows of the run are logged again.
                for earlier in outbox.folder.glob(f"offline-run-*-{init['id']}"):
                    shutil.rmtree(earlier)
                run = account.start_run("offline", **init)
        except wandb.errors.UsageError as error:
            outbox.remove_run(init["id"])
            raise ValueError(f"id {init['id']} of a W&B run: {first_line(error)}") from error
        except account.client_errors() as error:
            # Not even the client's offline record can be written, because the client still holds
            # the run's id, and ending the client would end all runs of this process.
            if mode == "online":
                _UNREACHABLE[configured.base_url] = first_line(error)
            _say_offline(first_line(error), outbox)
            run = account.start_run("disabled", **init)
        until_started.pop_all()
    return Tracker(run, outbox, lock, artifacts)


def open_online(outbox: Outbox, init: dict[str, Any]) -> Any:
    """Start a W&B run of the outbox's folder, and record it there.

    If the run of this attempt was deleted on W&B, the attempt and `init` get another id.
    """
    try:
        run = account.start_run("online", **init)
    except account.client_errors() as error:
        if not account.was_deleted(error) or init["id"] != outbox.own_id():
            raise
        outbox.remove_run(init["id"])
        outbox.renew_id()
        init["id"] = outbox.own_id()
        outbox.add_run(init)
        run = account.start_run("online", **init)
    init |= {"entity": run.entity, "resume": "allow"}
    outbox.add_run(init)
    return run


def check_keys(config: Mapping[str, Any]) -> None:
    """Raise ValueError for a setting that W&B does not know."""
    if config.get("_target_") != f"{__name__}.{wandb_logger.__name__}":
        return
    others = [name for name in config if name not in _USUAL and not name.startswith("_")]
    if others:
        import wandb  # not before: it takes a second

        for name in others:
            if name not in inspect.signature(wandb.init).parameters:
                raise ValueError(f"logger.{name}: wandb.init has no such argument")


def check(config: Any, *, several: bool) -> None:
    """Raise ValueError for a wrong config of the W&B logger; `several` jobs may have this config.

    The configs of other loggers are not checked.
    """
    if "mode" not in config:
        return
    _check_mode(config.mode)
    variable = os.environ.get("WANDB_RUN_ID")
    given = f"logger.id={config.id}" if config.get("id") else f"WANDB_RUN_ID={variable}"
    if several and not awaited() and (config.get("id") or variable):
        raise ValueError(f"{given} names one W&B run, and -m makes one for each job; leave it out")
    if config.mode == "online":
        started = "WANDB_SERVICE" in os.environ
        try:
            account.require_key()
        except account.NoKey as error:
            raise ValueError(f"logger.mode=online: {error}") from error
        finally:
            if not started:  # otherwise jobs on other machines would look for this client
                account.end_client()


def _check_mode(mode: Any) -> None:
    if mode not in MODES:
        raise ValueError(f"logger.mode must be one of {', '.join(MODES)}, got {mode}")


def awaited() -> bool:
    """Whether the agent of a W&B sweep has started this process and waits for its run."""
    return bool(os.environ.get("WANDB_SWEEP_ID"))


_UNREACHABLE: dict[str, str] = {}
"""Why a server cannot be used, by its address. Thus only one job of a sweep waits for an answer."""


def _reachable_mode(mode: str, outbox: Outbox) -> str:
    """The mode to use for online or auto; NoKey if mode is online and there is no key."""
    configured = account.configured()
    url = configured.base_url
    # WANDB_MODE still takes the older names.
    asked = {"dryrun": "offline", "run": "online"}.get(configured.mode, configured.mode)
    if mode == "auto" and asked in ("offline", "disabled"):
        return str(asked)
    try:
        if url in _UNREACHABLE:
            raise account.NoAnswer(_UNREACHABLE[url])
        account.connect(account.PROBE_SECONDS)
        return "online"
    except account.NoKey as error:
        if mode == "online":
            raise account.NoKey(f"logger.mode=online: {error}") from error
        why = str(error)
    except account.NoAnswer as error:
        why = _UNREACHABLE[url] = str(error)
    _say_offline(why, outbox)
    return "offline"


def _say_offline(why: str, outbox: Outbox) -> None:
    account.say(
        f"{why}; recording offline. To send the record: kgon sync {outbox.directory.parent}"
    )
