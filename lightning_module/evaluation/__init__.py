"""How good a network is: figures with their intervals, calibration, the report; and the labels that it gives.

`figures.evaluate` computes them from what `measured_photos` kept, `report` writes them as a page with `plots`;
`labellers`, `torch_labeller` and `top_labels` are what `lightning predict` prints.
"""
