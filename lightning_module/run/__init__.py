"""A training run: its folder, interrupting and resuming it, and a record of its environment.

`run_folder` (which file is where) and `last_checkpoint` (the callbacks that let a run be resumed) are for everybody;
the other files are for the command.
"""
