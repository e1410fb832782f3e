"""Which photos deserve a look before anything is trained on them. Finds, lists, sets aside; never deletes."""
