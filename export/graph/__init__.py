"""The neutral graph: typed nodes and numpy weights, independent of any framework, and how torch modules become one.

`nodes` is what all other code reads. `record` runs a torch module, and `trace` makes a graph of what it computed.
`fold` folds its BatchNorms, and `layer_names` gives its layers the names that Keras users know.
"""
