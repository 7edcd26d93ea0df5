"""The command line. Only the modules of this package see a config."""

import difflib
import gc
import importlib
import io
import os
import select
import signal
import sys

import kgon

COMMANDS = {
    "train": "train an ensemble, and record its plateaus, phases and learning coefficients",
    "llc": "estimate learning coefficients at critical points or along training",
    "posterior": "sample the posterior: phases against the sample size, evidence, transitions",
    "atlas": "list critical points for any n_features and n_hidden, and the passes between",
    "paper": "run every experiment of the paper, and compare its numbers one by one",
    "runs": "show the state of runs and sweeps: kgon runs [DIR...]",
    "sync": "send recorded runs to Weights & Biases: kgon sync [DIR...]",
    "dashboard": "make a Weights & Biases workspace or report about the runs",
    "figures": "draw the figures of runs again, or a result across a sweep: kgon figures [DIR...]",
    "report": "make one self-contained page about runs: kgon report [DIR...]",
}
CONFIGURED = ("train", "llc", "posterior", "atlas", "paper")
"""The commands that take a config. The others have command-line options."""

USAGE = "usage: kgon COMMAND [options]\n\ncommands:\n" + "".join(
    f"  {name:<10} {text}\n" for name, text in COMMANDS.items()
)


def main() -> None:
    """Entry point of the console script: `kgon COMMAND [Hydra overrides]`."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # an ASCII terminal shows ? for other characters
    try:
        try:
            _run()
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        output = select.poll()
        output.register(1, 0)
        if not any(event & select.POLLERR for _, event in output.poll(0)):
            raise
        # The reader of the output, head for instance, has gone; Python flushes once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(128 + signal.SIGPIPE)


def _run() -> None:
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        print(f"{USAGE}\nkgon COMMAND --help explains a command. This is kgon {kgon.__version__}.")
        sys.exit(0 if len(sys.argv) > 1 else 2)
    command, *words = sys.argv[1:]
    if command == "--version":
        print(kgon.__version__)
    elif {"-sc", "--shell-completion"} & set(sys.argv):
        from kgon.launch.completion import complete

        complete([*COMMANDS], CONFIGURED, sys.argv[1:])
    elif command not in COMMANDS:
        near = difflib.get_close_matches(command, COMMANDS, 1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(COMMANDS)}"
        print(f"kgon: error: there is no command {command!r}; {hint}", file=sys.stderr)
        sys.exit(2)
    elif command in CONFIGURED and {"-h", "--help"} & set(words):
        from kgon.launch.help import help_text

        print(help_text(command))
    else:
        # Imports leave garbage collection nothing to do, now and later.
        gc.disable()
        module = importlib.import_module(f"kgon.cli.{command}")
        gc.freeze()
        gc.enable()
        sys.argv = [f"kgon {command}", *words]
        try:
            module.main()
        except KeyboardInterrupt:
            sys.exit(128 + signal.SIGINT)
        finally:
            if "wandb" in sys.modules:
                from kgon.tracking.account import end_client

                end_client()
