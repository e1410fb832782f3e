"""Keras layers -> nodes, one file for each group of layers. `export/keras_file/layer_readers.py` imports them."""
