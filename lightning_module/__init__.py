"""How the network learns: the `lightning` command, the LightningModule and its callbacks."""
