"""Finds photos that should be looked at before training, lists them and sets them aside; it never deletes any.

`survey.survey` finds, `findings` is the CSV in which a person decides, `page.render_page` shows it, `quarantine` moves
files and brings them back. `lightning_module/commands/audit.py` is the command.
"""
