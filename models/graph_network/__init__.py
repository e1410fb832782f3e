"""A torch module built from a description of its operations: for networks that timm does not have."""

from models.graph_network.network import (
    IMPORTED,
    INPUT,
    GraphClassifier,
    GraphNetwork,
    build_classifier,
    packed,
    unpacked,
)

__all__ = ["IMPORTED", "INPUT", "GraphClassifier", "GraphNetwork", "build_classifier", "packed", "unpacked"]
