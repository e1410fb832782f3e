"""What the network sees: product photos, the split, the augmentation, the photo store."""
