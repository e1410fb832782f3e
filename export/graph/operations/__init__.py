"""Converters of recorded operations into nodes, one file for each group of operations.

Each file has a table `CONVERTERS`: name of the ATen operation -> function that adds nodes to the graph.
`export/graph/trace.py` alone imports them.
"""
