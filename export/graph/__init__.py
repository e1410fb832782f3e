"""The neutral graph: typed nodes and numpy weights, independent of any framework, and how torch modules become one.

`nodes` is what all other code reads. `trace` makes a graph of a torch module, `fold` folds its BatchNorms, and
`layer_names` gives its layers the names that Keras users know.
"""
