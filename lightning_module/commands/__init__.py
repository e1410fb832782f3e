"""The `lightning` command: `cli` finds the subcommand, each of the other files is one or a few of them.

Nothing is imported from here but `cli.main`; `cli` itself imports nothing heavy, so that help is at once there.
"""
