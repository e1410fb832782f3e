"""`python -m lightning_module` is the `lightning` command, where another tool owns that name."""

from lightning_module.commands.cli import main

if __name__ == "__main__":
    main()
