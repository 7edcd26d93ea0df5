"""python -m kgon: the command line."""

from kgon.cli import main

main()
