"""Nodes -> Keras layers, one file for each group of operations.

Each file has a table `LAYERS`: operation of the graph -> function that gives the layer's configuration and weights.
`export/keras_file/layers.py` alone imports them.
"""
