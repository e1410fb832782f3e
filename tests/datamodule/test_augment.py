"""The batched augmentation does what Keras's `apply_transform` does, for the same parameters."""

from dataclasses import fields, replace
from itertools import combinations
from typing import get_args

import numpy as np
import pytest
import torch

from datamodule.augment import Augmentation, FillMode, apply_affine
from datamodule.photo_store import load_photo
from models.bad_input import BadInput
from tests.conftest import SHARED
from tests.datamodule.keras_generator import ask_keras, needs_keras, needs_keras_transform

CLOTHING = SHARED / "data/clothing/train"
GEOMETRY = {
    "rotation_range": 40.0,
    "width_shift_range": 0.3,
    "height_shift_range": 0.2,
    "shear_range": 25.0,
    "zoom_range": 0.4,
    "horizontal_flip": True,
    "vertical_flip": True,
}
RECIPE = {
    "rotation_range": 20.0,
    "width_shift_range": 0.2,
    "height_shift_range": 0.2,
    "shear_range": 0.2,
    "zoom_range": 0.2,
    "horizontal_flip": True,
}
COLOUR = {"brightness_range": [0.4, 1.7], "channel_shift_range": 60.0}


# What else ImageDataGenerator takes, and why Augmentation does not (docs/data.md says it to readers).
NOT_OFFERED = {
    "rescale": "always 1/255: the network's input is [0, 1]",
    "featurewise_center": "normalisation, which is the network's first layer",
    "featurewise_std_normalization": "likewise",
    "samplewise_center": "likewise",
    "samplewise_std_normalization": "likewise",
    "zca_whitening": "likewise",
    "zca_epsilon": "of zca_whitening",
    "preprocessing_function": "any Python code; the twin could not carry it",
    "data_format": "a layout",
    "dtype": "a layout",
    "validation_split": "ProductPhotos has it",
}


def draw_photos(count: int, height: int, width: int) -> torch.Tensor:
    """Flat areas, steep edges and noise; uint8."""
    random = np.random.default_rng(0)
    photos = random.integers(0, 256, (count, height, width, 3), dtype=np.uint8)
    photos[:, : height // 2, : width // 2] = random.integers(0, 256, (count, 1, 1, 3))
    photos[::2, :, ::7] = 255
    return torch.from_numpy(photos)


def as_lists(parameters) -> dict[str, list]:
    """What Keras takes: a list per parameter."""
    return {name: value.tolist() for name, value in vars(parameters).items() if value is not None}


def keras_transform(tmp_path, photos, parameters, settings) -> np.ndarray:
    np.save(tmp_path / "photos.npy", photos.numpy())
    keras_settings = {name: settings[name] for name in ("fill_mode", "cval", "interpolation_order") if name in settings}
    return ask_keras(
        "transform", photos=str(tmp_path / "photos.npy"), parameters=as_lists(parameters), settings=keras_settings
    )["images"]


CASES = {
    "recipe": (RECIPE, (61, 61)),
    "recipe_even": (RECIPE, (64, 64)),
    "nearest": (GEOMETRY, (48, 65)),
    "tall": (GEOMETRY, (65, 30)),
    "constant": (GEOMETRY | {"fill_mode": "constant", "cval": 77.0}, (48, 65)),
    "reflect": (GEOMETRY | {"fill_mode": "reflect"}, (48, 65)),
    "wrap": (GEOMETRY | {"fill_mode": "wrap"}, (48, 65)),
    "far_reflect": (GEOMETRY | {"fill_mode": "reflect", "zoom_range": [3.0, 9.0]}, (20, 23)),
    "far_wrap": (GEOMETRY | {"fill_mode": "wrap", "zoom_range": [3.0, 9.0]}, (20, 23)),
    "colour": (RECIPE | COLOUR, (61, 61)),
    "colour_alone": (COLOUR, (61, 61)),
    "colour_constant": (GEOMETRY | COLOUR | {"fill_mode": "constant"}, (61, 61)),
    "whole_pixels": ({"width_shift_range": 9, "height_shift_range": [3.0, 5.0], "fill_mode": "constant"}, (33, 33)),
    "whole_pixels_wrap": ({"width_shift_range": 40, "height_shift_range": 40, "fill_mode": "wrap"}, (17, 17)),
    "whole_pixels_reflect": ({"width_shift_range": 40, "height_shift_range": 40, "fill_mode": "reflect"}, (17, 17)),
    "order_0": (GEOMETRY | {"interpolation_order": 0}, (61, 61)),
    "order_0_constant": (GEOMETRY | {"interpolation_order": 0, "fill_mode": "constant"}, (48, 65)),
    "order_0_reflect": (GEOMETRY | {"interpolation_order": 0, "fill_mode": "reflect"}, (48, 65)),
    "order_0_wrap": (GEOMETRY | {"interpolation_order": 0, "fill_mode": "wrap"}, (48, 65)),
    "order_0_halves": ({"interpolation_order": 0, "width_shift_range": [0.5, 2.5, 40.5]}, (33, 33)),
    "single_pixel": (RECIPE | {"fill_mode": "reflect"}, (1, 1)),
    "nothing": ({}, (33, 20)),
}


def load_clothing() -> torch.Tensor:
    """Twenty real photos, 244 x 244 as the recipe has them."""
    if not CLOTHING.is_dir():
        pytest.skip("the shared clothing photos are not here")
    files = [file for folder in sorted(CLOTHING.iterdir()) for file in sorted(folder.glob("*.jpg"))[:2]]
    return torch.from_numpy(np.stack([load_photo(file, (244, 244)) for file in files]))


WRONG_PARAMETERS = {
    "swapped_shifts": lambda right: {"tx": right.ty, "ty": right.tx},
    "swapped_zooms": lambda right: {"zx": right.zy, "zy": right.zx},
    "zoom_inverted": lambda right: {"zx": 1 / right.zx, "zy": 1 / right.zy},
    "other_turn": lambda right: {"theta": -right.theta},
    "turn_a_hundredth_more": lambda right: {"theta": right.theta + 0.2},
    "shear_in_radians": lambda right: {"shear": torch.rad2deg(right.shear)},
    "other_shear": lambda right: {"shear": -right.shear},
    "no_shift": lambda right: {"tx": 0 * right.tx},
    "swapped_flips": lambda right: {
        "flip_horizontal": right.flip_vertical,
        "flip_vertical": right.flip_horizontal,
    },
    "neighbour's": lambda right: {"theta": right.theta.roll(1)},
    "other_channel_shift": lambda right: {"channel_shift_intensity": -right.channel_shift_intensity},
    "channel_shift_in_0_to_1": lambda right: {"channel_shift_intensity": right.channel_shift_intensity / 255},
    "inverted_brightness": lambda right: {"brightness": 1 / right.brightness},
}


class TestAgainstKeras:
    pytestmark = needs_keras_transform

    @pytest.mark.parametrize("case", CASES)
    def test_same_pixels(self, tmp_path, case):
        settings, (height, width) = CASES[case]
        compare_with_keras(tmp_path, case, settings, draw_photos(40, height, width))

    @pytest.mark.parametrize("fill_mode", get_args(FillMode))
    @pytest.mark.parametrize("settings", [RECIPE, GEOMETRY], ids=["recipe", "all_geometry"])
    def test_same_pixels_of_real_photos(self, tmp_path, settings, fill_mode):
        photos = load_clothing()
        compare_with_keras(tmp_path, f"clothing {fill_mode}", settings | {"fill_mode": fill_mode, "cval": 99.0}, photos)

    def test_colours_of_real_photos(self, tmp_path):
        compare_with_keras(tmp_path, "clothing colour", RECIPE | COLOUR, load_clothing())

    @pytest.mark.parametrize("wrong", WRONG_PARAMETERS)
    def test_other_parameters_are_noticed(self, tmp_path, wrong):
        """Negative control: each parameter matters, and so do its sign, unit and place."""
        settings = GEOMETRY | COLOUR
        photos = draw_photos(8, 48, 65)
        parameters = Augmentation(**settings).draw_parameters(torch.Generator().manual_seed(3), 8, 48, 65)
        keras = keras_transform(tmp_path, photos, parameters, settings)
        ours = Augmentation(**settings).apply(photos, replace(parameters, **WRONG_PARAMETERS[wrong](parameters)))
        difference = np.abs(ours.numpy() - keras) / 255
        assert difference.max() > 3 / 255
        assert np.mean(difference <= 1e-4) < 0.999

    @pytest.mark.parametrize("fill_mode", get_args(FillMode))
    def test_other_fill_is_noticed(self, tmp_path, fill_mode):
        """Negative control: no fill mode passes for another."""
        photos = draw_photos(8, 61, 61)
        parameters = Augmentation(**GEOMETRY).draw_parameters(torch.Generator().manual_seed(3), 8, 61, 61)
        keras = keras_transform(tmp_path, photos, parameters, {"fill_mode": fill_mode})
        for other in set(get_args(FillMode)) - {fill_mode}:
            ours = Augmentation(fill_mode=other).apply(photos, parameters).numpy()
            assert np.mean(np.abs(ours - keras) / 255 <= 1e-4) < 0.99, other

    @pytest.mark.parametrize(
        ("keras_settings", "wrong"),
        [
            ({"interpolation_order": 0}, {"interpolation_order": 1}),
            ({"interpolation_order": 1}, {"interpolation_order": 0}),
            ({"fill_mode": "constant", "cval": 77.0}, {"cval": 0.0}),
            ({"fill_mode": "constant", "cval": 77.0}, {"cval": 78.0}),
        ],
    )
    def test_other_interpolation_or_fill_value_is_noticed(self, tmp_path, keras_settings, wrong):
        """Negative control."""
        photos = draw_photos(8, 61, 61)
        parameters = Augmentation(**GEOMETRY).draw_parameters(torch.Generator().manual_seed(3), 8, 61, 61)
        keras = keras_transform(tmp_path, photos, parameters, keras_settings)
        for settings, same in ((keras_settings, True), (keras_settings | wrong, False)):
            difference = np.abs(Augmentation(**settings).apply(photos, parameters).numpy() - keras) / 255
            assert (np.mean(difference <= 1e-4) >= 0.999) == same, settings


def compare_with_keras(tmp_path, case, settings, photos) -> None:
    augmentation = Augmentation(**settings)
    height, width = photos.shape[1:3]
    parameters = augmentation.draw_parameters(torch.Generator().manual_seed(3), len(photos), height, width)
    ours = augmentation.apply(photos, parameters)
    assert ours.dtype == torch.float32
    difference = np.abs(ours.numpy() - keras_transform(tmp_path, photos, parameters, settings)) / 255
    close = np.mean(difference <= 1e-4)
    print(f"{case}: worst {difference.max():.2e}, share within 1e-4 {close:.6f}")
    assert difference.max() <= 1.0001 / 255
    assert close >= 0.999


@needs_keras[0]
@needs_keras[1]
def test_every_setting_is_offered_or_accounted_for():
    keras = set(ask_keras("settings")["names"].tolist())
    ours = {field.name for field in fields(Augmentation) if field.init}
    assert keras - ours == set(NOT_OFFERED)
    assert ours <= keras


ONE_FOR_TWO = [("zy", "zx"), ("flip_vertical", "flip_horizontal")]


class TestDrawnParameters:
    pytestmark = needs_keras

    @pytest.mark.parametrize(
        "settings",
        [
            RECIPE | COLOUR,
            GEOMETRY | {"zoom_range": [0.5, 0.9]},
            {"width_shift_range": 5, "height_shift_range": [0.1, 0.4]},
            {"width_shift_range": 7.5, "height_shift_range": [2.0, 9.0]},
            {"width_shift_range": 1, "height_shift_range": 1.0},
            {},
        ],
    )
    def test_distributions(self, settings):
        """Kolmogorov-Smirnov's distance of two samples of 20,000 stays below its 1e-4 quantile."""
        count, height, width = 20_000, 30, 50
        keras = ask_keras("draw", settings=settings, image_shape=[height, width, 3], count=count, seed=5)
        ours = Augmentation(**settings).draw_parameters(torch.Generator().manual_seed(5), count, height, width)
        distances = distances_of(ours, keras)
        assert max(distances.values(), default=0.0) < 2.23 * np.sqrt(2 / count), distances

    @pytest.mark.parametrize("wrong", ONE_FOR_TWO)
    def test_one_draw_for_two_parameters_is_noticed(self, wrong):
        """Negative control: each parameter's own distribution is right, the two together are not."""
        count, height, width = 20_000, 30, 50
        keras = ask_keras("draw", settings=GEOMETRY, image_shape=[height, width, 3], count=count, seed=5)
        ours = Augmentation(**GEOMETRY).draw_parameters(torch.Generator().manual_seed(5), count, height, width)
        wrong_ours = replace(ours, **{wrong[0]: getattr(ours, wrong[1])})
        distances = distances_of(wrong_ours, keras)
        assert distances[wrong[0],] < 2.23 * np.sqrt(2 / count)
        assert max(distances, key=distances.get) in (wrong, wrong[::-1])
        assert max(distances.values()) > 0.1


def distances_of(ours, keras: dict[str, np.ndarray]) -> dict[tuple[str, ...], float]:
    """Kolmogorov-Smirnov's distances: of each parameter, and of the difference of every two.

    Two parameters that hang together where Keras draws them apart have the right distribution each; their difference
    has not. Differences are of parameters on one scale.
    """
    drawn = {}
    for name, theirs in keras.items():
        values = getattr(ours, name)
        if values is None:
            assert np.isnan(theirs).all(), name
        elif (scale := theirs.std()) > 0:
            drawn[name] = (values.double().numpy() - theirs.mean()) / scale, (theirs - theirs.mean()) / scale
        else:
            assert np.array_equal(values.double().numpy(), theirs), name
    distances: dict[tuple[str, ...], float] = {(name,): kolmogorov_smirnov(*pair) for name, pair in drawn.items()}
    for first, second in combinations(drawn, 2):
        differences = [one - other for one, other in zip(drawn[first], drawn[second], strict=True)]
        # Equal values of two scales differ by rounding, which the distance would take for an order.
        distances[first, second] = kolmogorov_smirnov(*(difference.round(9) for difference in differences))
    return distances


def kolmogorov_smirnov(first: np.ndarray, second: np.ndarray) -> float:
    """The largest distance between the distribution functions of two samples."""
    values = np.concatenate([first, second])
    shares = [np.searchsorted(np.sort(sample), values, side="right") / len(sample) for sample in (first, second)]
    return float(np.abs(shares[0] - shares[1]).max())


def test_kolmogorov_smirnov_can_fail():
    random = np.random.default_rng(0)
    assert kolmogorov_smirnov(random.uniform(-1, 1, 20_000), random.uniform(-1.1, 1.1, 20_000)) > 0.0223


def test_every_photo_has_parameters_of_its_own():
    parameters = Augmentation(**GEOMETRY).draw_parameters(torch.Generator().manual_seed(0), 32, 10, 10)
    for name in ("theta", "tx", "ty", "shear", "zx", "zy"):
        assert len(getattr(parameters, name).unique()) == 32
    photo = draw_photos(1, 20, 20)
    changed = apply_affine(photo.expand(32, -1, -1, -1), parameters)
    assert len(changed.flatten(1).unique(dim=0)) == 32


def test_the_batch_is_no_more_than_its_photos():
    augmentation = Augmentation(**GEOMETRY, **COLOUR, fill_mode="reflect")
    photos = draw_photos(6, 21, 34)
    parameters = augmentation.draw_parameters(torch.Generator().manual_seed(0), 6, 21, 34)
    together = augmentation.apply(photos, parameters)
    for row in range(6):
        alone = augmentation.apply(photos[row : row + 1], parameters[row : row + 1])
        torch.testing.assert_close(together[row], alone[0], rtol=0, atol=0)


def test_parts_of_a_large_batch_are_put_together(monkeypatch):
    augmentation = Augmentation(**GEOMETRY, **COLOUR)
    photos = draw_photos(7, 20, 30)
    parameters = augmentation.draw_parameters(torch.Generator().manual_seed(0), 7, 20, 30)
    whole = augmentation.apply(photos, parameters)
    monkeypatch.setattr("datamodule.augment.PIXELS_IN_CACHE", 20 * 30 * 3)
    torch.testing.assert_close(augmentation.apply(photos, parameters), whole, rtol=0, atol=0)


@pytest.mark.parametrize("settings", [RECIPE | {"channel_shift_range": 20.0}, GEOMETRY | COLOUR])
def test_no_copy_to_the_device_is_waited_for(monkeypatch, settings):
    """A blocking one would have the host wait, in each step, until the GPU has done all before it."""
    blocking = []
    move = torch.Tensor.to

    def spy(self, *arguments, **options):
        moved = move(self, *arguments, **options)
        if moved.device != self.device:
            blocking.append(not options.get("non_blocking", False))
        return moved

    monkeypatch.setattr(torch.Tensor, "to", spy)
    photos = torch.empty(2, 6, 5, 3, dtype=torch.uint8, device="meta")  # a device that is not the host
    augmentation = Augmentation(**settings)
    parameters = augmentation.draw_parameters(torch.Generator().manual_seed(0), 2, 6, 5)
    assert augmentation.apply(photos, parameters).shape == (2, 6, 5, 3)
    assert blocking
    assert not any(blocking)


def test_nothing_changes_nothing():
    photos = draw_photos(3, 17, 12)
    parameters = Augmentation().draw_parameters(torch.Generator(), 3, 17, 12)
    torch.testing.assert_close(Augmentation().apply(photos, parameters), photos.float(), rtol=0, atol=0)


def test_flips():
    photos = draw_photos(4, 5, 7)
    parameters = Augmentation().draw_parameters(torch.Generator(), 4, 5, 7)
    parameters.flip_horizontal[:] = torch.tensor([False, True, False, True])
    parameters.flip_vertical[:] = torch.tensor([False, False, True, True])
    changed = apply_affine(photos, parameters)
    for row, axes in enumerate(([], [1], [0], [0, 1])):
        torch.testing.assert_close(changed[row], photos[row].flip(axes).float(), rtol=0, atol=0)


@pytest.mark.parametrize(
    "settings",
    [
        {"zoom_range": 1.0},
        {"zoom_range": [0.5]},
        {"brightness_range": [0.5]},
        {"fill_mode": "mirror"},
        {"cval": 256.0},
        {"rotation_range": -5.0},
        {"width_shift_range": -0.1},
        {"interpolation_order": 3},
    ],
)
def test_bad_settings(settings):
    with pytest.raises(BadInput, match=f"{next(iter(settings))}: expected .* received"):
        Augmentation(**settings)
