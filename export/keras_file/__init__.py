"""Keras's `.h5`, written and read without Keras.

`layers` turns graph nodes into Keras layers, `write` puts them into a file, `read` takes one apart, `architecture`
makes a graph of what was read; `golden` are the images that travel in the file with their answers.
"""
