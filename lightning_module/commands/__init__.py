"""The `lightning` command: `cli` finds the subcommand, and the other files implement the subcommands.

Other packages import only `cli.main`. `cli` itself imports nothing heavy, so that help appears at once.
"""
