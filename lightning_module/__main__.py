"""`python -m lightning_module` is the `lightning` command, where another tool owns that name."""

import sys
from pathlib import Path

# `python -m` looks into the working folder first, where somebody's own `models/` would be taken for ours.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lightning_module.commands.cli import main

if __name__ == "__main__":
    main()
