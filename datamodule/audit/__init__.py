"""Finds photos that should be looked at before training, lists them and sets them aside; it never deletes any."""
