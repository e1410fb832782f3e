"""Keras's `.h5`, written and read without Keras.

`layers` turns graph nodes into Keras layers, and `write` puts them into a file. `read` takes a file apart, and
`architecture` makes a graph of what was read. `golden` draws the images that are stored in the file, with torch's
answers.
"""
