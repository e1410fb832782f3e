"""What the network sees: product photos, the split, the augmentation, the photo store.

`product_photos.ProductPhotos` is the LightningDataModule; `audit` finds photos that should not be trained on.
"""
