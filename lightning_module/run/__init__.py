"""A training run from outside: its folder, how it is interrupted and goes on, and what it was made with.

Other rooms take `run_folder.RunFolder` and `run_folder.run_folder_of`; the callbacks of `last_checkpoint` are the
command's.
"""
