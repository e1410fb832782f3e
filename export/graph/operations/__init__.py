"""Converters of recorded operations into nodes, one file for each group. `export/graph/trace.py` alone imports them."""
