"""The command line. Only the modules of this package see a config."""

import gc
import importlib
import sys

COMMANDS = {
    "train": "train an ensemble and record plateaus, phases and learning coefficients",
    "llc": "learning coefficients at critical points or at a run's snapshots, against theory",
    "posterior": "the posterior's phases against the sample size, its evidence and transitions",
    "paper": "run every experiment of the paper and compare the numbers, one by one",
    "runs": "how runs and sweeps stand: kgon runs [DIR...]",
    "sync": "send recorded runs to Weights & Biases: kgon sync [DIR...]",
    "dashboard": "a Weights & Biases workspace or report about the runs",
    "report": "one self-contained page for runs: kgon report DIR...",
}

CONFIGURED = ("train", "llc", "posterior", "paper")
"""The commands that take a config; the others parse options of their own."""

USAGE = "usage: kgon COMMAND [options]\n\ncommands:\n" + "".join(
    f"  {name:<10} {text}\n" for name, text in COMMANDS.items()
)


def main() -> None:
    """Entry point of the console script: `kgon COMMAND [Hydra overrides]`."""
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        print(USAGE + "\nkgon COMMAND --help explains a command.")
        sys.exit(0 if len(sys.argv) > 1 else 2)
    command = sys.argv[1]
    if command == "--version":
        from importlib.metadata import version

        print(version("kgon"))
        return
    if command not in COMMANDS:
        import difflib

        near = difflib.get_close_matches(command, COMMANDS, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        print(f"kgon: error: no command {command!r}{hint}\n\n{USAGE}", file=sys.stderr)
        sys.exit(2)
    if {"-h", "--help"} & set(sys.argv) and command in CONFIGURED:
        from kgon.launch.help import help_text

        print(help_text(command))
        return
    gc.disable()
    module = importlib.import_module(f"kgon.cli.{command}")
    # What was imported stays; the garbage collector need not look through it again and again.
    gc.freeze()
    gc.enable()
    sys.argv = [f"kgon {command}", *sys.argv[2:]]
    module.main()
