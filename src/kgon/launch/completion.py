"""Completion of command lines in a shell: eval "$(kgon -sc install=bash)".

The shell then calls `kgon -sc query=bash` with the command line in COMP_LINE. Hydra completes the
settings and options of a single config, so it gets the line without the name of the command.
"""

import os
import sys
from collections.abc import Sequence

import hydra
from omegaconf import OmegaConf

from kgon.launch.options import CONF


def complete(commands: Sequence[str], configured: Sequence[str], words: Sequence[str]) -> None:
    """Print the completions of COMP_LINE, or the script that installs completion.

    Args:
        commands: all commands.
        configured: the commands that take a config.
        words: the command line, such as -sc query=bash.
    """
    command = configured[0]
    program, *line = os.environ.get("COMP_LINE", "").split(" ")
    if any(word.startswith("query=") for word in words):
        if len(line) < 2:
            print(*commands)
            return
        command, *rest = line
        if command not in configured:
            return
        os.environ["COMP_LINE"] = " ".join([program, *rest])
    # Finding options needs only this resolver; the others would import torch.
    OmegaConf.register_new_resolver("kgon.conf", lambda: str(CONF), replace=True)
    # Hydra installs completion for the program's own name.
    sys.argv = ["kgon", *(word for word in words if word not in configured)]
    hydra.main(version_base="1.3", config_path=str(CONF), config_name=command)(lambda _: None)()
