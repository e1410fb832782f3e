"""How the network learns: the LightningModule, its callbacks, and the `lightning` command.

The module itself stands in front; `commands` is the command line, `run` a run's folder and how it survives,
`evaluation` what is measured and reported.
"""
