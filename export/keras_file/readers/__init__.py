"""Keras layers -> nodes, one file for each group of layers.

Each file has a table `READERS`: class of the Keras layer -> function that adds its nodes to the graph.
`export/keras_file/layer_readers.py` alone imports them.
"""
