"""A training run: its folder, interrupting and resuming it, and a record of its environment.

Other packages use `run_folder.RunFolder` and `run_folder.run_folder_of`; only the command uses the callbacks in
`last_checkpoint`.
"""
