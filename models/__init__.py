"""What the network is: timm backbone, normalisation inside, dense head."""
