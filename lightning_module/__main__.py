"""`python -m lightning_module` is the `lightning` command, for when another tool has installed that name."""

import sys
from pathlib import Path

# `python -m` searches the working folder first, so a user's own `models/` there would be imported in place of ours.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lightning_module.commands.cli import main

if __name__ == "__main__":
    main()
