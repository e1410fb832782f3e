"""A small catalogue of drawn product photos, so that everything runs without a download."""

import colorsys
import itertools
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from models.bad_input import BadInput

Colour = tuple[int, int, int]
Points = list[tuple[float, float]]

# Written last, so a folder that contains it is complete. It is a file and not a folder, so it is not taken for a class.
CATALOGUE_RECORD = ".demo_catalogue.json"
# Raised when the drawings change, so that a catalogue from an older version is not taken for this one.
DRAWING_VERSION = 1


class Pen:
    """Draws filled shapes on a transparent square, in coordinates from 0 to 1.

    Args:
        side: side of the square, in pixels.
    """

    def __init__(self, side: int) -> None:
        self.side = side
        self.layer = Image.new("RGBA", (side, side))
        self.draw = ImageDraw.Draw(self.layer)

    def scaled(self, points: Points) -> Points:
        """Turn coordinates into pixels."""
        return [(x * self.side, y * self.side) for x, y in points]

    def polygon(self, points: Points, colour: Colour) -> None:
        """Fill a polygon."""
        self.draw.polygon(self.scaled(points), fill=(*colour, 255))

    def box(self, left: float, top: float, right: float, bottom: float, colour: Colour, corner: float = 0.0) -> None:
        """Fill a rectangle, its corners rounded by `corner`."""
        (x0, y0), (x1, y1) = self.scaled([(left, top), (right, bottom)])
        self.draw.rounded_rectangle((x0, y0, x1, y1), radius=corner * self.side, fill=(*colour, 255))

    def ellipse(self, left: float, top: float, right: float, bottom: float, colour: Colour) -> None:
        """Fill an ellipse."""
        (x0, y0), (x1, y1) = self.scaled([(left, top), (right, bottom)])
        self.draw.ellipse((x0, y0, x1, y1), fill=(*colour, 255))

    def line(self, points: Points, colour: Colour, width: float = 0.008) -> None:
        """Draw a line."""
        self.draw.line(self.scaled(points), fill=(*colour, 255), width=max(1, round(width * self.side)))

    def erase(self, left: float, top: float, right: float, bottom: float) -> None:
        """Make an ellipse transparent again."""
        (x0, y0), (x1, y1) = self.scaled([(left, top), (right, bottom)])
        self.draw.ellipse((x0, y0, x1, y1), fill=(0, 0, 0, 0))


def random_colour(chance: np.random.Generator, darkest: float = 0.15, most_colourful: float = 0.9) -> Colour:
    """Draw a colour: any hue, saturation up to `most_colourful`, value from `darkest` to 1."""
    saturation, value = chance.uniform(0, most_colourful), chance.uniform(darkest, 1.0)
    return to_rgb(chance.random(), saturation, value)


def to_rgb(hue: float, saturation: float, value: float) -> Colour:
    """Turn hue, saturation and value, each 0..1, into red, green and blue, 0..255."""
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def shade(colour: Colour, factor: float) -> Colour:
    """Darken (factor below 1) or lighten a colour."""
    red, green, blue = (min(255, round(value * factor)) for value in colour)
    return red, green, blue


def draw_jeans(pen: Pen, chance: np.random.Generator) -> None:
    """Draw trousers: waistband, two legs at a random distance, seams and pockets."""
    if chance.random() < 0.75:  # denim; else any colour, so that blue is not enough to recognise jeans
        blue = chance.uniform(0.25, 0.95)
        colour = (round(120 * blue), round(150 * blue), round(225 * blue))
    else:
        colour = random_colour(chance)
    dark, light = shade(colour, 0.7), shade(colour, 1.25)
    waist, hip = chance.uniform(0.15, 0.2), chance.uniform(0.19, 0.25)
    spread, hem = chance.uniform(0.03, 0.16), chance.uniform(0.07, 0.15)
    length, crotch = chance.uniform(0.78, 0.95), chance.uniform(0.36, 0.46)
    for side in (-1, 1):
        foot = 0.5 + side * (spread + hem)
        pen.polygon(
            [
                (0.5, 0.1),
                (0.5 + side * waist, 0.1),
                (0.5 + side * hip, crotch - 0.08),
                (foot + side * hem, length),
                (foot - side * hem, length),
                (0.5, crotch),
            ],
            colour,
        )
        pen.line([(0.5 + side * waist * 0.95, 0.2), (0.5 + side * waist * 0.45, 0.24)], dark, 0.012)
        pen.line([(0.5 + side * hip * 0.9, crotch), (foot + side * hem * 0.8, length)], light)
        pen.line([(foot - hem, length - 0.025), (foot + hem, length - 0.025)], dark)
    pen.box(0.5 - waist, 0.07, 0.5 + waist, 0.125, dark)
    pen.line([(0.5, 0.12), (0.5, crotch)], dark, 0.01)
    if chance.random() < 0.5:
        pen.ellipse(0.485, 0.082, 0.515, 0.112, (200, 170, 90))


def draw_tshirt(pen: Pen, chance: np.random.Generator) -> None:
    """Draw a T-shirt: body, two short sleeves, neck, and at random a print or stripes."""
    colour = random_colour(chance)
    dark = shade(colour, 0.75)
    chest, hem = chance.uniform(0.2, 0.28), chance.uniform(0.2, 0.3)
    sleeve, drop = chance.uniform(0.14, 0.22), chance.uniform(0.12, 0.26)
    length = chance.uniform(0.78, 0.93)
    for side in (-1, 1):
        shoulder = 0.5 + side * chest
        pen.polygon(
            [
                (0.5 + side * 0.08, 0.12),
                (shoulder, 0.16),
                (shoulder + side * sleeve, 0.2 + drop),
                (shoulder + side * (sleeve - 0.1), 0.27 + drop),
                (shoulder - side * 0.02, 0.36),
            ],
            colour,
        )
        pen.line([(shoulder, 0.17), (shoulder - side * 0.01, 0.36)], dark)
    pen.polygon(
        [
            (0.42, 0.12),
            (0.58, 0.12),
            (0.5 + chest, 0.16),
            (0.5 + hem, length),
            (0.5 - hem, length),
            (0.5 - chest, 0.16),
        ],
        colour,
    )
    decoration = chance.random()
    if decoration < 0.3:
        stripe = random_colour(chance)
        for top in np.arange(0.42, length - 0.06, chance.uniform(0.08, 0.14)):
            pen.box(0.5 - min(chest, hem), top, 0.5 + min(chest, hem), top + 0.035, stripe)
    elif decoration < 0.65:
        print_colour = random_colour(chance, darkest=0.4)
        if chance.random() < 0.5:
            pen.ellipse(0.4, 0.36, 0.6, 0.56, print_colour)
        else:
            pen.polygon([(0.5, 0.34), (0.62, 0.56), (0.38, 0.56)], print_colour)
    pen.line([(0.5 - hem, length - 0.03), (0.5 + hem, length - 0.03)], dark)
    depth = chance.uniform(0.17, 0.25)
    pen.ellipse(0.4, 0.01, 0.6, depth + 0.02, dark)
    pen.erase(0.415, 0.0, 0.585, depth)
    pen.erase(0.35, -0.1, 0.65, 0.125)  # the upper half of the collar's ring, which would stick out above the shoulders


def draw_sofa(pen: Pen, chance: np.random.Generator) -> None:
    """Draw a sofa from the front: back, seat, two arms, feet, and at random cushions."""
    if chance.random() < 0.6:  # leather and wool; else any colour
        hue, saturation, value = chance.uniform(0.03, 0.12), chance.uniform(0.2, 0.7), chance.uniform(0.3, 0.9)
        colour = to_rgb(hue, saturation, value)
    else:
        colour = random_colour(chance)
    dark, light = shade(colour, 0.75), shade(colour, 1.15)
    left, right = chance.uniform(0.03, 0.14), chance.uniform(0.86, 0.97)
    back, seat, floor = chance.uniform(0.25, 0.36), chance.uniform(0.52, 0.58), chance.uniform(0.7, 0.78)
    arm, arm_top = chance.uniform(0.08, 0.14), chance.uniform(0.4, 0.5)
    corner = chance.uniform(0.01, 0.06)
    feet = shade((150, 110, 70), chance.uniform(0.3, 1.1))
    for x in (left + 0.04, right - 0.08):
        pen.box(x, floor - 0.02, x + 0.04, floor + 0.07, feet)
    pen.box(left + 0.03, back, right - 0.03, floor - 0.05, dark, corner)
    seats = int(chance.integers(1, 4))
    edges = np.linspace(left + arm, right - arm, seats + 1)
    for start, end in itertools.pairwise(edges):
        pen.box(start + 0.005, back + 0.03, end - 0.005, seat + 0.02, colour, corner)
        pen.box(start + 0.004, seat, end - 0.004, seat + 0.1, light, corner / 2)
    pen.box(left + 0.02, seat + 0.09, right - 0.02, floor, colour, corner / 2)
    for x in (left, right - arm):
        pen.box(x, arm_top, x + arm, floor, light, corner)
    for _ in range(int(chance.integers(0, 3))):
        x = chance.uniform(left + arm, right - arm - 0.15)
        pen.box(x, seat - 0.14, x + 0.15, seat + 0.01, random_colour(chance), 0.02)


def draw_tv(pen: Pen, chance: np.random.Generator) -> None:
    """Draw a television: frame, a screen that is on or off, one foot or two."""
    frame = shade((70, 70, 75), chance.uniform(0.2, 1.4))
    left, right = chance.uniform(0.03, 0.12), chance.uniform(0.88, 0.97)
    top = chance.uniform(0.16, 0.28)
    bottom = top + (right - left) * chance.uniform(0.5, 0.62)
    bezel = chance.uniform(0.015, 0.04)
    if chance.random() < 0.5:
        pen.box(0.46, bottom - 0.01, 0.54, bottom + 0.08, shade(frame, 0.8))
        pen.box(0.5 - chance.uniform(0.1, 0.2), bottom + 0.07, 0.5 + chance.uniform(0.1, 0.2), bottom + 0.1, frame)
    else:
        for x in (left + 0.14, right - 0.14):
            pen.polygon(
                [(x - 0.01, bottom), (x + 0.01, bottom), (x + 0.05, bottom + 0.09), (x - 0.05, bottom + 0.09)], frame
            )
    pen.box(left, top, right, bottom, frame, 0.01)
    screen = (left + bezel, top + bezel, right - bezel, bottom - bezel)
    shown = chance.random()
    if shown < 0.55:  # off, with a reflection
        black = shade((40, 42, 50), chance.uniform(0.3, 1.2))
        pen.box(*screen, black)
        x = chance.uniform(screen[0], screen[2] - 0.3)
        pen.polygon(
            [(x, screen[3]), (x + 0.12, screen[3]), (x + 0.28, screen[1]), (x + 0.16, screen[1])], shade(black, 1.5)
        )
    elif shown < 0.8:  # a landscape
        horizon = chance.uniform(screen[1] + 0.1, screen[3] - 0.1)
        pen.box(*screen, random_colour(chance, darkest=0.5))
        pen.box(screen[0], horizon, screen[2], screen[3], random_colour(chance))
        peak = chance.uniform(screen[0] + 0.2, screen[2] - 0.2)
        pen.polygon([(peak - 0.18, horizon), (peak, screen[1] + 0.07), (peak + 0.18, horizon)], random_colour(chance))
    else:  # tiles, like a menu
        pen.box(*screen, random_colour(chance, darkest=0.1))
        for column in range(3):
            for row in range(2):
                x, y = screen[0] + 0.05 + column * 0.24, screen[1] + 0.05 + row * 0.2
                pen.box(x, y, x + 0.18, y + 0.14, random_colour(chance, darkest=0.3))


DRAWINGS: dict[str, Callable[[Pen, np.random.Generator], None]] = {
    "jeans": draw_jeans,
    "sofa": draw_sofa,
    "tshirt": draw_tshirt,
    "tv": draw_tv,
}
DEMO_CLASSES = tuple(sorted(DRAWINGS))


def draw_background(side: int, chance: np.random.Generator) -> Image.Image:
    """Draw a background: plain, a gradient, a texture, floor and wall, or clutter."""
    kind = chance.choice(["plain", "gradient", "texture", "room", "clutter"], p=[0.4, 0.25, 0.1, 0.15, 0.1])
    # Paler and lighter than most products, as in real shops.
    first, second = (np.array(random_colour(chance, darkest=0.6, most_colourful=0.35), dtype=np.float64) for _ in "ab")
    rows, columns = np.mgrid[0:side, 0:side] / side
    if kind == "plain":
        blend = np.zeros((side, side))
        if chance.random() < 0.6:  # a shop's white or light grey
            first = np.full(3, chance.uniform(215, 255))
    elif kind == "gradient":
        angle = chance.uniform(0, 2 * np.pi)
        blend = (np.cos(angle) * (columns - 0.5) + np.sin(angle) * (rows - 0.5)) / 1.4 + 0.5
    elif kind == "texture":
        angle, frequency = chance.uniform(0, np.pi), chance.uniform(6, 25)
        wave = np.sin(2 * np.pi * frequency * (np.cos(angle) * columns + np.sin(angle) * rows))
        blend = (wave > 0) * chance.uniform(0.1, 0.5) if chance.random() < 0.5 else wave * 0.2 + 0.2
    else:
        blend = (rows > chance.uniform(0.45, 0.8)) * 1.0
    pixels = first + (second - first) * blend[..., None]
    background = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    if kind == "clutter":
        draw = ImageDraw.Draw(background)
        for _ in range(int(chance.integers(4, 10))):
            draw_any_shape(draw, side, chance, largest=0.35)
    return background


def draw_any_shape(draw: ImageDraw.ImageDraw, side: int, chance: np.random.Generator, largest: float) -> None:
    """Draw a rectangle, an ellipse or a thick line of any colour anywhere, up to `largest` times `side` in size."""
    x, y = chance.uniform(0, side, 2)
    width, height = chance.uniform(0.08, largest, 2) * side
    colour = random_colour(chance)
    box = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
    kind = chance.integers(3)
    if kind == 0:
        draw.rectangle(box, fill=colour)
    elif kind == 1:
        draw.ellipse(box, fill=colour)
    else:
        draw.line(box, fill=colour, width=round(0.04 * side))


def draw_photo(class_name: str, chance: np.random.Generator, size: int = 128) -> Image.Image:
    """Draw one product photo: the product in a random pose before a random background, sometimes partly covered.

    Args:
        class_name: one of `DEMO_CLASSES`.
        chance: source of all random choices.
        size: height and width in pixels.

    Returns:
        The photo, RGB.
    """
    side = 2 * size  # drawn twice as large and reduced, for smooth edges
    photo = draw_background(side, chance)

    pen = Pen(side)
    DRAWINGS[class_name](pen, chance)
    product = pen.layer
    if chance.random() < 0.5:
        product = product.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    scale = chance.uniform(0.75, 1.0)
    stretch = chance.uniform(0.85, 1.15)
    width, height = round(side * scale * min(1, stretch)), round(side * scale * min(1, 1 / stretch))
    # Scaling a transparent layer smoothly would blend transparent black into its edges. Premultiplied alpha avoids it.
    product = product.convert("RGBa").resize((width, height), Image.Resampling.BILINEAR).convert("RGBA")
    product = product.rotate(chance.normal(0, 8), Image.Resampling.BILINEAR, expand=True)
    place = tuple(round(chance.uniform(0.3, 0.7) * (side - length)) for length in product.size)
    left, top = place
    if chance.random() < 0.6:  # a soft shadow
        shadow = Image.new("L", (side, side))
        shadow.paste(product.getchannel("A").point(lambda value: value // 3), (left + side // 50, top + side // 40))
        photo.paste((0, 0, 0), mask=shadow.filter(ImageFilter.BoxBlur(side // 40)))
    photo.paste(product, (left, top), product)

    draw = ImageDraw.Draw(photo)
    if chance.random() < 0.35:
        for _ in range(int(chance.integers(1, 3))):
            draw_any_shape(draw, side, chance, largest=0.3)
    if chance.random() < 0.1:  # a price tag
        x, y = chance.uniform(0.02, 0.75, 2) * side
        draw.rectangle((x, y, x + 0.2 * side, y + 0.1 * side), fill=(250, 240, 120), outline=(60, 60, 60))
        draw.text((x + 0.03 * side, y + 0.02 * side), "SALE", fill=(200, 30, 30), font_size=0.06 * side)

    photo = photo.resize((size, size), Image.Resampling.BOX)
    pixels = np.asarray(photo, dtype=np.float32)
    rows, columns = np.mgrid[0:size, 0:size] / size - 0.5
    angle = chance.uniform(0, 2 * np.pi)
    light = chance.uniform(0.65, 1.2) + chance.uniform(0, 0.5) * (np.cos(angle) * columns + np.sin(angle) * rows)
    tint = chance.uniform(0.9, 1.1, 3)
    noise = chance.normal(0, chance.uniform(1, 9), pixels.shape)
    return Image.fromarray((pixels * light[..., None] * tint + noise).clip(0, 255).astype(np.uint8))


def draw_catalogue(root: Path, per_class: int = 200, seed: int = 0, size: int = 128) -> None:
    """Draw the catalogue into `root`, unless it is there already: `<root>/<class>/<class>_0001.jpg` and so on.

    The folder appears in one step when it is complete, or not at all. Several processes may draw at the same time.

    Args:
        root: folder to create; it may exist if it is empty or holds such a catalogue.
        per_class: photos of each class.
        seed: the same seed gives the same photos.
        size: height and width of the photos in pixels.

    Raises:
        BadInput: `root` holds something else, or cannot be written.
    """
    record = {"drawing": DRAWING_VERSION, "per_class": per_class, "seed": seed, "size": size}
    if holds_catalogue(root, record):
        return
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=f".{root.name}.", dir=root.parent))
    except OSError as error:
        raise BadInput(
            f"root: expected a folder that can be written for the drawn catalogue; received {root}: {error}. "
            "Give another with --data.root DIR."
        ) from error
    print(f"Drawing {per_class * len(DEMO_CLASSES)} photos into {root} ...", flush=True)
    try:
        for label, class_name in enumerate(DEMO_CLASSES):
            (unfinished / class_name).mkdir()
            for number in range(per_class):
                chance = np.random.default_rng([seed, label, number])
                photo = draw_photo(class_name, chance, size)
                path = unfinished / class_name / f"{class_name}_{number + 1:04d}.jpg"
                photo.save(path, quality=int(chance.integers(70, 96)))
        (unfinished / CATALOGUE_RECORD).write_text(json.dumps(record))
        unfinished.chmod(0o755)  # mkdtemp makes folders private
        try:
            os.replace(unfinished, root)  # noqa: PTH105 - Path.replace is the same call; this one is known to be atomic
        except OSError:
            # Not empty: another process was faster, or a catalogue with other settings is in the way.
            if not holds_catalogue(root, record):
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def holds_catalogue(root: Path, record: dict[str, int]) -> bool:
    """Return whether `root` holds the catalogue of `record`; remove a catalogue that has other settings.

    Raises:
        BadInput: `root` holds something else, which must not be replaced.
    """
    written = root / CATALOGUE_RECORD
    if written.is_file():
        if json.loads(written.read_text()) == record:
            return True
        shutil.rmtree(root)
        return False
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise BadInput(
            "root: expected a folder that is empty or does not exist, to draw the demo catalogue into; "
            f"received {root}, which holds something else. "
            "Give another with --data.root DIR, or train on what is there with --data.demo false."
        )
    return False
