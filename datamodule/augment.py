"""ImageDataGenerator's random transformations as one batched tensor operation.

Sources mirrored: `keras/src/legacy/preprocessing/image.py` (`ImageDataGenerator.get_random_transform`,
`apply_transform`, `apply_affine_transform`, `apply_channel_shift`, `apply_brightness_shift`; Keras 3.15) and
`scipy.ndimage.affine_transform(order=1)` (SciPy 1.17), which Keras calls.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from models.bad_input import BadInput

InterpolationOrder = Literal[0, 1]
FillMode = Literal["nearest", "constant", "reflect", "wrap"]

# On a CPU a large batch is processed in parts of about this many pixels (4 photos of 244 x 244). The intermediate
# results then stay in the cache, which is about twice as fast.
PIXELS_IN_CACHE = 1 << 18


@dataclass(frozen=True)
class TransformParameters:
    """The transformation of each photo of a batch: Keras's own names and signs, one row per photo, float64 on the CPU.

    Attributes:
        theta: rotation in degrees, shape (B,).
        tx: shift in pixels, shape (B,); drawn from `height_shift_range`, see `matrices`.
        ty: shift in pixels, shape (B,); drawn from `width_shift_range`.
        shear: shear angle in degrees, shape (B,).
        zx: zoom, shape (B,); below 1 enlarges.
        zy: zoom, shape (B,).
        flip_horizontal: bool, shape (B,).
        flip_vertical: bool, shape (B,).
        channel_shift_intensity: added to every channel, in units of 0..255, shape (B,); None: no channel shift.
        brightness: factor, shape (B,); None: brightness is not changed.
    """

    theta: Tensor
    tx: Tensor
    ty: Tensor
    shear: Tensor
    zx: Tensor
    zy: Tensor
    flip_horizontal: Tensor
    flip_vertical: Tensor
    channel_shift_intensity: Tensor | None = None
    brightness: Tensor | None = None

    def __len__(self) -> int:
        return len(self.theta)

    def __getitem__(self, rows: Tensor | slice) -> "TransformParameters":
        """Return the parameters of some of the photos; `rows` indexes the first dimension."""
        values = {name.name: getattr(self, name.name) for name in fields(self)}
        return replace(self, **{name: value[rows] for name, value in values.items() if value is not None})

    def matrices(self, height: int, width: int) -> Tensor:
        """Return the matrices that map a pixel (row, column) of the result to its position in the photo.

        Mirrors `apply_affine_transform`: rotation, shift, shear and zoom are composed in "x, y" order about a centre,
        then both axes are swapped. This has two peculiarities, kept because the old models were trained with them: tx,
        drawn from `height_shift_range`, moves photos sideways (and ty up and down); and for photos that are not square
        the centre is (width / 2, height / 2) in (row, column) order, so their content drifts.

        Args:
            height: height of the photos, in pixels.
            width: width of the photos, in pixels.

        Returns:
            float64, shape (B, 2, 3): a 2x2 matrix and, in the last column, the offset.
        """
        cos, sin = torch.cos(torch.deg2rad(self.theta)), torch.sin(torch.deg2rad(self.theta))
        shear_cos, shear_sin = torch.cos(torch.deg2rad(self.shear)), torch.sin(torch.deg2rad(self.shear))
        # rotation @ shift @ shear @ zoom, written out
        xx, xy = cos * self.zx, (-cos * shear_sin - sin * shear_cos) * self.zy
        yx, yy = sin * self.zx, (-sin * shear_sin + cos * shear_cos) * self.zy
        x_offset, y_offset = cos * self.tx - sin * self.ty, sin * self.tx + cos * self.ty
        # about the centre, as in transform_matrix_offset_center(matrix, height, width)
        x_centre, y_centre = height / 2 - 0.5, width / 2 - 0.5
        x_offset = x_offset + x_centre - (xx * x_centre + xy * y_centre)
        y_offset = y_offset + y_centre - (yx * x_centre + yy * y_centre)
        # the swap: (x, y) becomes (row=y, column=x)
        rows = torch.stack([yy, yx, y_offset], dim=-1)
        columns = torch.stack([xy, xx, x_offset], dim=-1)
        return torch.stack([rows, columns], dim=1)


@dataclass(frozen=True)
class Augmentation:
    """Random transformations of photos; names, units and distributions are `ImageDataGenerator`'s.

    Attributes:
        rotation_range: degrees; angles are uniform in [-r, r].
        width_shift_range: a number below 1: share of the width; a float of 1 or more: pixels, uniform in [-r, r]; an
            integer n: 0..n-1 pixels in either direction; a list: one of its values, in either direction.
        height_shift_range: the same for the height. Keras swaps the two directions, and so do we: see
            `TransformParameters.matrices`. With equal ranges and square photos this makes no difference.
        shear_range: *degrees*, as in Keras: the often copied 0.2 is a fifth of a degree and hardly visible.
        zoom_range: z means [1 - z, 1 + z]; or [lower, upper]. Height and width are drawn independently.
        horizontal_flip: mirror half of the photos left to right.
        vertical_flip: mirror half of the photos top to bottom.
        fill_mode: what lies outside of the photo. `nearest`: its border (aaaa|abcd|dddd); `constant`: `cval`;
            `reflect`: abcddcba|abcd|dcbaabcd; `wrap`: as in SciPy, where the first and last pixel coincide, so that
            the period is one pixel shorter (bcabc|abcd|bcdbc).
        cval: the value outside of the photo for `constant`, 0..255.
        brightness_range: [lower, upper] factor, or None; 1 leaves the photo as it is. As in Keras, values are truncated
            to whole numbers before and after.
        channel_shift_range: in units of 0..255; one number per photo, uniform in [-r, r], is added to all channels, and
            the result is limited to the photo's own range of values.
        interpolation_order: how moved pixels are read: 1 interpolates between the four nearest, 0 takes the nearest.
            ImageDataGenerator's splines, 2 to 5, are not offered: they need the whole photo for each pixel.

    Raises:
        BadInput: a setting is out of its range.
    """

    rotation_range: float = 0.0
    width_shift_range: int | float | list[float] = 0.0
    height_shift_range: int | float | list[float] = 0.0
    shear_range: float = 0.0
    zoom_range: float | list[float] = 0.0
    horizontal_flip: bool = False
    vertical_flip: bool = False
    fill_mode: FillMode = "nearest"
    cval: float = 0.0
    brightness_range: list[float] | None = None
    channel_shift_range: float = 0.0
    interpolation_order: InterpolationOrder = 1
    _zoom: tuple[float, float] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if isinstance(self.zoom_range, int | float):
            zoom: Sequence[float] = (1 - self.zoom_range, 1 + self.zoom_range)
        else:
            zoom = tuple(self.zoom_range)

        def is_shift(setting: int | float | list[float]) -> bool:
            return setting >= 0 if isinstance(setting, int | float) else len(setting) > 0

        shifts = "a number of 0 or more, or a list of shifts"
        for name, expected, fits in (
            ("rotation_range", "0 or more degrees", self.rotation_range >= 0),
            ("width_shift_range", shifts, is_shift(self.width_shift_range)),
            ("height_shift_range", shifts, is_shift(self.height_shift_range)),
            ("shear_range", "0 or more degrees", self.shear_range >= 0),
            ("zoom_range", "a number below 1 or [lower, upper], both above 0", len(zoom) == 2 and min(zoom) > 0),
            ("fill_mode", f"one of {', '.join(get_args(FillMode))}", self.fill_mode in get_args(FillMode)),
            ("cval", "a number from 0 to 255", 0 <= self.cval <= 255),
            (
                "brightness_range",
                "[lower, upper], neither below 0, or nothing",
                self.brightness_range is None or (len(self.brightness_range) == 2 and min(self.brightness_range) >= 0),
            ),
            ("channel_shift_range", "0 or more, in units of 0..255", self.channel_shift_range >= 0),
            ("interpolation_order", "0 or 1", self.interpolation_order in get_args(InterpolationOrder)),
        ):
            if not fits:
                raise BadInput(
                    f"augmentation.{name}: expected {expected}; received {getattr(self, name)!r}. "
                    f"The meaning is that of Keras's ImageDataGenerator({name}=...)."
                )
        object.__setattr__(self, "_zoom", (zoom[0], zoom[1]))

    def draw_parameters(self, generator: torch.Generator, batch: int, height: int, width: int) -> TransformParameters:
        """Draw random parameters for each photo, with the distributions of `get_random_transform`.

        Args:
            generator: on the CPU; the result depends only on its state, whatever device the photos are on.
            batch: number of photos.
            height: height of the photos, in pixels.
            width: width of the photos, in pixels.

        Returns:
            The parameters, `batch` rows.
        """

        def uniform(lower: float, upper: float) -> Tensor:
            return torch.rand(batch, generator=generator, dtype=torch.float64) * (upper - lower) + lower

        def coin() -> Tensor:
            return torch.rand(batch, generator=generator, dtype=torch.float64) < 0.5

        def shift(setting: int | float | list[float], length: int) -> Tensor:
            if isinstance(setting, float):
                drawn, largest = uniform(-setting, setting), setting
            else:  # numpy.random.choice of an integer or of a list, with a random sign
                choices = torch.tensor(range(setting) if isinstance(setting, int) else setting, dtype=torch.float64)
                if not len(choices):  # an integer 0
                    return torch.zeros(batch, dtype=torch.float64)
                picked = torch.randint(len(choices), (batch,), generator=generator)
                drawn = choices[picked] * torch.where(coin(), -1.0, 1.0)
                largest = setting if isinstance(setting, int) else max(setting)
            return drawn * length if largest < 1 else drawn

        return TransformParameters(
            theta=uniform(-self.rotation_range, self.rotation_range),
            tx=shift(self.height_shift_range, height),
            ty=shift(self.width_shift_range, width),
            shear=uniform(-self.shear_range, self.shear_range),
            zx=uniform(*self._zoom),
            zy=uniform(*self._zoom),
            flip_horizontal=coin() & self.horizontal_flip,
            flip_vertical=coin() & self.vertical_flip,
            channel_shift_intensity=(
                uniform(-self.channel_shift_range, self.channel_shift_range) if self.channel_shift_range else None
            ),
            brightness=uniform(*self.brightness_range) if self.brightness_range is not None else None,
        )

    def apply(self, photos: Tensor, parameters: TransformParameters) -> Tensor:
        """Transform each photo by its `parameters`, in Keras's order.

        Args:
            photos: uint8 or float32, shape (B, H, W, C), 0..255, on any device.
            parameters: B rows.

        Returns:
            float32, shape (B, H, W, C), 0..255, on the device of `photos`.
        """
        if photos.device.type != "cpu" or photos[..., 0].numel() <= PIXELS_IN_CACHE or len(photos) == 1:
            return self._apply_at_once(photos, parameters)
        step = max(1, PIXELS_IN_CACHE // (photos.shape[1] * photos.shape[2]))
        parts = [slice(start, start + step) for start in range(0, len(photos), step)]
        return torch.cat([self._apply_at_once(photos[part], parameters[part]) for part in parts])

    def _apply_at_once(self, photos: Tensor, parameters: TransformParameters) -> Tensor:
        # The fast sampler is only nearly exact. A later step that rounds to whole numbers needs the slow, exact way.
        exact = self.fill_mode != "nearest" or self.interpolation_order != 1 or parameters.brightness is not None
        if not exact and min(photos.shape[1:3]) > 1:
            changed = sample_affine(photos, parameters)
        else:
            precise = self.interpolation_order == 0 or parameters.brightness is not None
            changed = apply_affine(photos, parameters, self.fill_mode, self.cval, self.interpolation_order, precise)
        if parameters.channel_shift_intensity is not None:
            changed = shift_channels(changed, parameters.channel_shift_intensity)
        if parameters.brightness is not None:
            changed = change_brightness(changed, parameters.brightness)
        return changed


def send(values: Tensor, device: torch.device) -> Tensor:
    """Move values from the CPU to a device without waiting for the work that a GPU still has queued."""
    if device.type in ("cpu", "mps"):  # on Apple's GPU a non-blocking copy could read values that are not there yet
        return values.to(device)
    return (values.pin_memory() if device.type == "cuda" else values).to(device, non_blocking=True)


def sample_affine(photos: Tensor, parameters: TransformParameters) -> Tensor:
    """Do the same as `apply_affine` for `fill_mode` nearest, some ten times as fast, to within 0.01 of 255.

    torch's own sampler takes positions as float32 from -1 to 1, so it does not hit whole pixels exactly. Photos that
    are only moved by whole pixels or mirrored go through `apply_affine`, which copies pixels bit for bit.

    Args:
        photos: uint8 or float32, shape (B, H, W, C), 0..255; both sides at least 2 pixels.
        parameters: B rows.

    Returns:
        float32, shape (B, H, W, C), 0..255.
    """
    height, width = photos.shape[1:3]
    matrices = parameters.matrices(height, width)
    whole = (matrices == matrices.round()).all(dim=2).all(dim=1)
    if whole.all():
        return apply_affine(photos, parameters)
    rows = torch.arange(height, dtype=torch.float64).expand(len(photos), -1)
    columns = torch.arange(width, dtype=torch.float64).expand(len(photos), -1)
    rows = torch.where(parameters.flip_vertical[:, None], height - 1 - rows, rows)
    columns = torch.where(parameters.flip_horizontal[:, None], width - 1 - columns, columns)
    # x first, as the sampler expects it. The parts are small and computed in float64, so only their sum is rounded.
    scale = 2 / torch.tensor([width - 1, height - 1], dtype=torch.float64)
    matrices = matrices.flip(1) * scale[:, None]
    by_row = matrices[:, None, :, 0] * rows[:, :, None] + matrices[:, None, :, 2] - 1
    by_column = matrices[:, None, :, 1] * columns[:, :, None]
    # Adding x and y as one complex number is eight times as fast on a CPU as adding arrays with a last axis of 2.
    by_row, by_column = (torch.view_as_complex(send(part.float(), photos.device)) for part in (by_row, by_column))
    places = torch.view_as_real(by_row[:, :, None] + by_column[:, None])
    changed = torch.nn.functional.grid_sample(
        photos.float().permute(0, 3, 1, 2), places, mode="bilinear", padding_mode="border", align_corners=True
    ).permute(0, 2, 3, 1)
    if whole.any():
        chosen = send(whole, photos.device)
        changed[chosen] = apply_affine(photos[chosen], parameters[whole])
    return changed


def apply_affine(
    photos: Tensor,
    parameters: TransformParameters,
    fill_mode: FillMode = "nearest",
    cval: float = 0.0,
    interpolation_order: InterpolationOrder = 1,
    precise: bool = False,
) -> Tensor:
    """Rotate, shift, shear, zoom and flip a batch, each photo by its own parameters.

    Mirrors `apply_affine_transform` followed by `flip_axis`.

    Args:
        photos: uint8 or float32, shape (B, H, W, C), 0..255.
        parameters: B rows.
        fill_mode: what lies outside of the photo (see `Augmentation`).
        cval: the value outside for `constant`.
        interpolation_order: 1 interpolates between four pixels, 0 takes the nearest one.
        precise: compute in float64, as SciPy does, if the device supports it. This is needed if values are rounded
            afterwards: 126.99999 and 127 differ by 1 after they are truncated to whole numbers.

    Returns:
        float32, shape (B, H, W, C), 0..255.
    """
    batch, height, width, channels = photos.shape
    device = photos.device
    dtype = torch.float64 if precise and device.type != "mps" else torch.float32
    matrices = parameters.matrices(height, width)
    rows = torch.arange(height, dtype=torch.float64).expand(batch, -1)
    columns = torch.arange(width, dtype=torch.float64).expand(batch, -1)
    # A flip only reverses the order in which the pixels of the result are read.
    rows = torch.where(parameters.flip_vertical[:, None], height - 1 - rows, rows)
    columns = torch.where(parameters.flip_horizontal[:, None], width - 1 - columns, columns)

    def neighbours(axis: int, length: int) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Return per pixel its two neighbours along an axis, the weight of the second, and whether it is inside."""
        # The position is a sum of one term per row and one per column. What needs float64 is computed on these short
        # vectors. The H x W planes hold whole and fractional parts separately, so float32 is exact enough for them,
        # also on devices without float64.
        by_row = matrices[:, axis, 0, None] * rows + matrices[:, axis, 2, None]
        by_column = matrices[:, axis, 1, None] * columns
        row_whole, column_whole = by_row.floor(), by_column.floor()
        fraction = send((by_row - row_whole).to(dtype), device)[:, :, None]
        fraction = fraction + send((by_column - column_whole).to(dtype), device)[:, None, :]
        carry = fraction.floor()
        fraction = fraction - carry
        # Far outside counts the same as just outside, so clamping changes nothing and prevents overflow.
        first = send(row_whole.clamp(-1e8, 1e8).int(), device)[:, :, None] + carry.int()
        first = first + send(column_whole.clamp(-1e8, 1e8).int(), device)[:, None, :]
        inside = None
        if fill_mode == "constant":
            # SciPy does not blend with the constant: everything beyond the border pixels' centres is constant.
            inside = (first >= 0) & ((first < length - 1) | ((first == length - 1) & (fraction == 0)))
        if fill_mode == "wrap" and length > 1:
            # SciPy's period is length - 1; exact multiples of it outside of the photo map to its other end.
            period = length - 1
            on_seam = (fraction == 0) & (first % period == 0) & ((first < 0) | (first == period))
            first = torch.where(on_seam, period, first % period)
        if interpolation_order == 0:
            first, fraction = first + (fraction >= 0.5), torch.zeros_like(fraction)
        if fill_mode == "reflect":
            first, second = (reflect(place, length) for place in (first, first + 1))
        else:
            first, second = first.clamp(0, length - 1), (first + 1).clamp(0, length - 1)
        return first, second, fraction.unsqueeze(-1), inside

    top, bottom, down, inside_rows = neighbours(0, height)
    left, right, across, inside_columns = neighbours(1, width)
    pixels = photos.reshape(-1, channels).to(dtype)
    first_pixel = torch.arange(batch, dtype=torch.int32, device=device)[:, None, None] * (height * width)
    top, bottom = first_pixel + top * width, first_pixel + bottom * width

    def read(places: Tensor) -> Tensor:
        return pixels.index_select(0, places.reshape(-1)).view(batch, height, width, channels)

    # lerp and not a sum of four weighted corners: if all four are equal, the result is exactly that value, which
    # `change_brightness` relies on when it truncates to whole numbers.
    upper = torch.lerp(read(top + left), read(top + right), across)
    lower = torch.lerp(read(bottom + left), read(bottom + right), across)
    changed = torch.lerp(upper, lower, down).float()
    if inside_rows is not None and inside_columns is not None:
        changed = torch.where((inside_rows & inside_columns).unsqueeze(-1), changed, cval)
    return changed


def reflect(places: Tensor, length: int) -> Tensor:
    """Reflect integer positions outside of 0..length-1 back into it; border pixels repeat (dcba|abcd|dcba)."""
    folded = places % (2 * length)
    return torch.where(folded < length, folded, 2 * length - 1 - folded)


def shift_channels(photos: Tensor, intensity: Tensor) -> Tensor:
    """Add one number to all channels of each photo, limited to that photo's own range (`apply_channel_shift`).

    Args:
        photos: float32, shape (B, H, W, C), 0..255.
        intensity: shape (B,), in units of 0..255.

    Returns:
        float32, shape (B, H, W, C), 0..255.
    """
    lowest, highest = photos.amin((1, 2, 3), keepdim=True), photos.amax((1, 2, 3), keepdim=True)
    shift = send(intensity.float(), photos.device)[:, None, None, None]
    return (photos + shift).clamp(lowest, highest)


def change_brightness(photos: Tensor, brightness: Tensor) -> Tensor:
    """Multiply each photo by its factor (`apply_brightness_shift`).

    Keras uses an 8-bit Pillow image for this, so values are truncated to whole numbers before and after.

    Args:
        photos: float32, shape (B, H, W, C), 0..255.
        brightness: shape (B,), factors of 0 or more.

    Returns:
        float32 whole numbers, shape (B, H, W, C), 0..255.
    """
    factor = send(brightness.float(), photos.device)[:, None, None, None]
    return (photos.floor() * factor).clamp(0, 255).floor()
