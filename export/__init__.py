"""How a network leaves PyTorch and comes back from Keras: one file for each road.

Top of the room: what a user calls. Below it `proof` (is it the same network?), `keras_file` (Keras's files without
Keras), `graph` (what a network computes, in no framework) and `worker` (what runs in another interpreter).
"""
