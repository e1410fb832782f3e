"""Networks that were trained elsewhere: other people's checkpoints, and the networks whose weights are in them.

`checkpoint_file` reads weights out of a file, `fitting` finds the network's own tensors among them, `networks` builds
the network by its name.
"""
