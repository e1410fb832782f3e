"""What the network is: timm backbone, normalisation inside, dense head; and what every other room needs.

`timm_mobilenetv2.TimmClassifier` is the network. `bad_input`, `choices` and `atomic_write` are at the bottom of the
house: they may be imported from anywhere and import nothing of it but each other.
"""
