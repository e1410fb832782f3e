"""Nodes -> Keras layers, one file for each group of operations. `export/keras_file/layers.py` alone imports them."""
