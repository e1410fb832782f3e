"""Draws the photos that trip readers up, good and bad."""

from pathlib import Path

import numpy as np
from PIL import Image


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    """Random pixels, uint8."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def draw_odd_photos(folder: Path) -> dict[str, Path]:
    """Write photos that are odd but can be read; returns them by what is odd about them."""
    folder.mkdir(parents=True, exist_ok=True)
    rgb = Image.fromarray(noise(37, 53))
    photos = {}

    def keep(name: str, photo: Image.Image, ending: str, **options) -> None:
        photos[name] = folder / f"{name}.{ending}"
        photo.save(photos[name], **options)

    keep("plain", rgb, "jpg")
    keep("cmyk", Image.fromarray(noise(31, 29, 4), "CMYK"), "jpg")
    keep("large", Image.fromarray(noise(200, 300)), "jpg")
    keep("grey", rgb.convert("L"), "jpg")
    keep("bits16", Image.fromarray(noise(30, 40, 2).view(np.uint16)[..., 0]), "png")
    keep("bits16_tiff", Image.fromarray(noise(30, 40, 2).view(np.uint16)[..., 0]), "tiff")
    keep("palette", rgb.quantize(16), "png", transparency=3)
    keep("alpha", Image.fromarray(noise(20, 30, 4), "RGBA"), "png")
    keep("one_bit", rgb.convert("1"), "png")
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    keep("exif_rotated", rgb, "jpg", exif=exif)
    keep("single_pixel", Image.new("RGB", (1, 1), (200, 10, 90)), "png")
    keep("wide", Image.fromarray(np.tile(noise(9, 1000), (1, 20, 1))), "jpg")
    keep("png_named_jpg", rgb, "jpg", format="PNG")
    keep("grey_alpha", Image.fromarray(noise(20, 30, 4), "RGBA").convert("LA"), "png")
    keep("palette_alpha", rgb.quantize(8), "png", transparency=bytes([0, 80, 160, 255, 255, 255, 255, 255]))
    keep("grey_transparent", rgb.convert("L"), "png", transparency=7)
    keep("rgb_transparent", rgb, "png", transparency=(0, 0, 0))
    keep("bits32", Image.fromarray(noise(30, 40, 4).view(np.int32)[..., 0]), "tif")
    keep("float32", Image.fromarray(noise(30, 40, 1)[..., 0].astype(np.float32) * 1.3 - 20), "tif")
    keep("cmyk_tiff", Image.fromarray(noise(31, 29, 4), "CMYK"), "TIF", compression="tiff_lzw")
    keep("lab", Image.fromarray(noise(31, 29), "LAB"), "tiff")
    keep("two_pages", rgb, "tif", save_all=True, append_images=[rgb.rotate(90)])
    keep("progressive", rgb, "JPEG", progressive=True, subsampling=2, quality=30)
    keep("no_subsampling", rgb, "Jpg", subsampling=0)
    keep("bitmap", rgb, "bmp")
    keep("bitmap_palette", rgb.quantize(200), "BMP")
    keep("portable", rgb, "ppm")
    keep("gif_named_png", rgb.quantize(16), "png", format="GIF")
    keep("webp_named_jpg", rgb, "jpg", format="WEBP", quality=60)
    keep("tall", Image.fromarray(noise(1000, 3)), "png")
    keep("right_size", Image.fromarray(noise(24, 40)), "png")
    return photos


def draw_bad_photos(folder: Path) -> dict[str, Path]:
    """Write files that cannot be read as photos; returns them by what is wrong with them."""
    folder.mkdir(parents=True, exist_ok=True)
    whole = folder.parent / "whole.jpg"
    Image.fromarray(noise(100, 100)).save(whole)
    content = whole.read_bytes()
    whole.unlink()
    bad = {name: folder / f"{name}.jpg" for name in ("truncated", "only_header", "zero_bytes", "text", "gone")}
    bad["truncated"].write_bytes(content[: len(content) // 2])
    bad["only_header"].write_bytes(content[:20])
    bad["zero_bytes"].touch()
    bad["text"].write_text("This is not a photo.\n")
    bad["gone"].symlink_to(folder / "nowhere.jpg")
    # 20,000 x 10,000 pixels in a file of some kilobytes: over the limit against decompression bombs
    bad["bomb"] = folder / "bomb.png"
    Image.new("1", (20_000, 10_000)).save(bad["bomb"])
    return bad
