"""Evaluation of a network: figures with confidence intervals, calibration, the report; and labels for photos.

`figures.evaluate` computes the figures from the logits that `measured_photos` keeps, and `report` writes them as a page
with `plots`. For `lightning predict`, `labellers`, `torch_labeller` and `top_labels` compute the labels, `labelling`
says which are given, and `prediction_files` writes them.
"""
