"""How the network leaves PyTorch as a Keras .h5, and the proof that both compute the same function."""
