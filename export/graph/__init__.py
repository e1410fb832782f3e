"""The neutral graph: typed nodes and numpy weights, with no framework in it, and the road from torch to it.

`nodes` is what everything else reads; `trace` makes a graph of a torch module, `fold` folds its BatchNorms,
`layer_names` names its layers as Keras users know them.
"""
