"""`lightning fit`, `validate` and `test`: Lightning's own command line with this project's settings.

`commands.cli` starts `training`; the other files are its help, its files of settings and what it says.
"""
