"""The catalogue gains, loses and reorders categories: what a checkpoint knows is matched by the classes' names."""

import logging
from pathlib import Path

import pytest
import torch
from torch import Tensor

from datamodule.demo_photos import draw_catalogue
from datamodule.product_photos import ProductPhotos
from export.checkpoint import read_checkpoint, write_checkpoint
from export.import_keras import write_import
from export.keras_to_torch import ImportSettings, read_keras_classifier
from lightning_module.class_rows import ClassRows, match_classes, take_weights, with_outputs
from lightning_module.classifier import ProductClassifier
from models.bad_input import BadInput
from models.graph_network import packed, unpacked
from tests.conftest import CLASS_NAMES, lightning, random_classifier, save_checkpoint
from tests.export.own_cnn import SIZE, own_cnn

SMALL = {"backbone": "mobilenetv2_short"}
FIVE = ["jeans", "lamp", "sofa", "tshirt", "tv"]


@pytest.fixture(scope="module", params=["timm", "graph"])
def four(request, tmp_path_factory) -> Path:
    """A checkpoint of four classes: of a timm network, and of one that was built from a Keras file."""
    folder = tmp_path_factory.mktemp("four")
    if request.param == "timm":
        facts = {"class_names": CLASS_NAMES, "image_size": [SIZE, SIZE], "interpolation": "nearest"}
        network = random_classifier(**SMALL, hidden=(8,))
        write_checkpoint(folder / "four.ckpt", network, {**facts, "trainable": "head", "learning_rate": 1e-3}, {})
        return folder / "four.ckpt"
    classifier = read_keras_classifier(own_cnn(folder / "own.h5"), ImportSettings(CLASS_NAMES))
    write_import(classifier, folder / "four.ckpt", check=False)
    return folder / "four.ckpt"


def trained_on(class_names: list[str], checkpoint: Path, **settings) -> ProductClassifier:
    """As the command builds it: the architecture is the checkpoint's."""
    source = read_checkpoint(checkpoint)
    torch.manual_seed(1)
    return ProductClassifier(
        class_names, source.image_size, **source.network.architecture, weights=str(checkpoint), **settings
    )


def last_layer(network) -> torch.nn.Module:
    return [module for module in network.head.modules() if isinstance(module, torch.nn.Linear)][-1]


def exact_logits(network) -> Tensor:
    """Logits, (B, C), in whole numbers of 1/4096, so that no order of summation rounds: a fifth row changes none."""
    layer = last_layer(network)
    photos = torch.rand(6, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    hooks = [layer.register_forward_pre_hook(lambda _, given: (given[0].clamp(-4, 4).mul(64).round() / 64,))]
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(parameter.clamp(-4, 4).mul(64).round() / 64)
        logits = network.eval()(photos)
    hooks[0].remove()
    return logits


@pytest.mark.parametrize(
    "after",
    [FIVE, ["tv", "tshirt", "sofa", "jeans"], ["tv", "jeans"], ["boots", "tv", "cap"], CLASS_NAMES],
    ids=["five", "reordered", "dropped", "mixed", "same"],
)
def test_known_classes_keep_their_logits_exactly(four, after):
    module = trained_on(after, four)
    module.load_pretrained_weights()
    before = read_checkpoint(four).network
    for part in ("backbone", "normalise"):
        for name, tensor in getattr(before, part).state_dict().items():
            assert torch.equal(getattr(module.network, part).state_dict()[name], tensor), name
    now, then = last_layer(module.network), last_layer(before)
    known = [(after.index(name), CLASS_NAMES.index(name)) for name in after if name in CLASS_NAMES]
    rows, old_rows = [each for each, _ in known], [each for _, each in known]
    assert torch.equal(now.weight[rows], then.weight[old_rows])
    assert torch.equal(now.bias[rows], then.bias[old_rows])
    fresh = [row for row in range(len(after)) if row not in rows]
    assert (now.weight[fresh] != 0).all()
    assert (now.bias[fresh] == 0).all()
    logits, old_logits = exact_logits(module.network), exact_logits(before)
    assert logits.shape == (6, len(after))
    assert torch.equal(logits[:, rows], old_logits[:, old_rows])
    assert old_logits.std(0).min() > 0
    # the negative control: a row in a wrong place is seen
    with torch.no_grad():
        now.weight.copy_(now.weight.roll(1, 0))
    assert not torch.equal(exact_logits(module.network)[:, rows], old_logits[:, old_rows])


def test_checkpoint_of_the_larger_network_is_read_again(four, tmp_path):
    module = trained_on(FIVE, four)
    module.load_pretrained_weights()
    facts = {"class_names": FIVE, "image_size": [SIZE, SIZE]}
    again = read_checkpoint(save_checkpoint(tmp_path / "five.ckpt", module.network, (SIZE, SIZE), **facts))
    photos = torch.rand(2, 3, SIZE, SIZE)
    with torch.no_grad():
        assert torch.equal(again.network.to(memory_format=torch.channels_last)(photos), module.network.eval()(photos))


def test_table_says_what_becomes_of_each_class():
    table = str(ClassRows(Path("a.ckpt"), ("tv", "old", "sofa"), ("new", "tv", "sofa")))
    assert table.splitlines() == [
        "Classes matched by name with those of a.ckpt:",
        "  class  before     now",
        "  new         -       0  added, with fresh weights",
        "  old         1       -  dropped",
        "  tv          0       1  kept, moved",
        "  sofa        2       2  kept",
    ]
    many = str(ClassRows(Path("a.ckpt"), tuple(f"c{n}" for n in range(5000)), tuple(f"d{n}" * 99 for n in range(9))))
    assert "and 4909 more" in many
    assert max(map(len, many.splitlines())) < 100


def test_classes_that_cannot_be_matched_are_refused():
    source = Path("a.ckpt")
    with pytest.raises(BadInput, match=r"at least one class of a.ckpt, \['a', 'b'\], received \['c', 'd'\]"):
        match_classes(source, ["a", "b"], ["c", "d"], "match")
    with pytest.raises(BadInput, match=r"--model.classes strict.*in another order.*--model.classes match"):
        match_classes(source, ["a", "b"], ["b", "a"], "strict")
    with pytest.raises(BadInput, match=r"missing: \['b'\], foreign: \['c'\]"):
        match_classes(source, ["a", "b"], ["a", "c"], "strict")
    assert not match_classes(source, ["a", "b"], ["a", "b"], "strict").differ


def test_weights_of_another_network_are_refused(tmp_path):
    wide = save_checkpoint(
        tmp_path / "a.ckpt", random_classifier(**SMALL, hidden=(16,)), (SIZE, SIZE), class_names=CLASS_NAMES
    )
    network = random_classifier(**SMALL, hidden=(8,))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(BadInput, match=r"hidden layers \[8\].*with \[16\].*--model.hidden"):
        take_weights(network, FIVE[:4], wide, "match")
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_imported_networks_without_a_row_for_each_class_stay_as_they_are(tmp_path):
    classifier = read_keras_classifier(own_cnn(tmp_path / "own.h5"), ImportSettings(CLASS_NAMES))
    description = unpacked(classifier.network.graph)
    last = description["head"][-1]
    description["head"].append({**last, "name": "twice", "op": "add", "inputs": [last["name"]] * 2, "weights": {}})
    with pytest.raises(BadInput, match=r"a row for each class .*'twice' .add.*--data.class_names"):
        with_outputs(packed(description), 5)
    assert with_outputs(packed(description), 4) == packed(description)


def test_last_convolution_before_a_pooling_has_the_rows():
    """As SqueezeNet ends."""
    conv = {"strides": [1, 1], "padding": [0, 0, 0, 0], "dilation": [1, 1], "groups": 1}
    nodes = [
        {"name": "conv", "op": "conv2d", "inputs": ["x"], "shape": [4, 3, 3], "attributes": conv,
         "weights": {"kernel": [4, 8, 1, 1], "bias": [4]}},
        {"name": "relu", "op": "relu", "inputs": ["conv"], "shape": [4, 3, 3], "attributes": {"max_value": None},
         "weights": {}},
        {"name": "pool", "op": "global_average_pool", "inputs": ["relu"], "shape": [4],
         "attributes": {"keep_dimensions": False}, "weights": {}},
    ]  # fmt: skip
    larger = unpacked(with_outputs(packed({"backbone": [], "head": nodes}), 5))["head"]
    assert [node["shape"] for node in larger] == [[5, 3, 3], [5, 3, 3], [5]]
    assert larger[0]["weights"] == {"kernel": [5, 8, 1, 1], "bias": [5]}


# The commands ---------------------------------------------------------------------------------------------------------

TINY = ["--data.batch_size=8", "--trainer.max_epochs=1", "--trainer.accelerator=cpu", "--hand_over.enabled=false"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """`four` and `five`, where a fifth class begins before the others."""
    folder = tmp_path_factory.mktemp("photos")
    draw_catalogue(folder / "four", per_class=5, size=SIZE)
    for name in CLASS_NAMES:
        (folder / "five" / name).mkdir(parents=True)
        for photo in (folder / "four" / name).iterdir():
            (folder / "five" / name / photo.name).symlink_to(photo)
    (folder / "five" / "boots").symlink_to(folder / "four" / "tv")
    return folder


@pytest.fixture
def said(capsys, caplog):
    """What was printed and logged since it was last asked."""
    caplog.set_level(logging.INFO)

    def said() -> str:
        words = "".join(capsys.readouterr()) + caplog.text
        caplog.clear()
        return words

    return said


def test_fit_goes_on_with_five_classes_and_test_measures_four(four, photos, tmp_path, said):
    run = tmp_path / "run"
    given = [*TINY, f"--trainer.default_root_dir={run}", "--data.on_copies=warn"]
    assert lightning("fit", *given, f"--ckpt_path={four}", f"--data.root={photos / 'five'}") == 0
    words = said()
    assert "boots        -       0  added, with fresh weights" in words
    assert "Training begins anew from these weights" in words
    assert read_checkpoint(run / "best.ckpt").class_names == ("boots", *CLASS_NAMES)
    measured = [*TINY[:1], TINY[2], f"--ckpt_path={run / 'best.ckpt'}", f"--trainer.default_root_dir={tmp_path / 't'}"]
    assert lightning("test", *measured, f"--data.root={photos / 'four'}") == 0
    assert "lacks the classes ['boots'], and is measured over the others" in said()


def test_the_other_way_is_refused_or_left_out(four, photos, tmp_path, said):
    given = ["validate", *TINY[:1], TINY[2], f"--ckpt_path={four}", f"--data.root={photos / 'five'}"]
    assert lightning(*given) == 2
    words = said()
    assert "foreign: ['boots']). Give photos of these classes, named likewise, or leave others out with" in words
    assert "--data.foreign_classes skip." in words
    assert lightning(*given, "--data.foreign_classes=skip") == 0
    assert "left out: ['boots']" in said()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--model.classes=strict"], "--model.classes strict: expected the classes of"),
        (["--data.class_names=[x,y]", "--data.foreign_classes=skip"], "class_names: expected the classes ['x', 'y']"),
        (["--data.class_names=[tv,1]"], """of its own: --data.class_names '["1","true"]'"""),
        (['--data.class_names=["tv","1","true"]', "--data.foreign_classes=skip"], "received none in 1, true"),
        (["--data.class_names=[tv,tv]"], "class_names: expected two or more names, each once"),
        (["--data.class_names=[tv,sofa]"], "foreign: ['boots', 'jeans', 'tshirt']"),
        (["--data.class_names=[tv,hat]", "--data.foreign_classes=skip"], "received none in hat"),
    ],
)
def test_refusals(four, photos, tmp_path, capsys, more, words):
    given = [*TINY, f"--trainer.default_root_dir={tmp_path / 'run'}", f"--data.root={photos / 'five'}"]
    assert lightning("fit", *given, f"--ckpt_path={four}", *more) == 2
    assert words in capsys.readouterr().err


def test_same_classes_go_on_as_before(four, photos, tmp_path, said):
    """Also in the checkpoint's own order, given by name."""
    given = [*TINY, f"--trainer.default_root_dir={tmp_path / 'run'}", f"--data.root={photos / 'four'}"]
    assert lightning("fit", *given, f"--ckpt_path={four}", "--model.classes=strict") == 0
    assert "begins anew" not in said()


def test_table_is_measured_in_the_checkpoints_order(photos, tmp_path):
    table = tmp_path / "photos.csv"
    rows = [f"{name}/{photo.name},{name}" for name in ("tv", "sofa") for photo in (photos / "four" / name).iterdir()]
    table.write_text("\n".join(["file,label", *rows]))
    given = {"table": str(table), "photos": str(photos / "four"), "image_size": SIZE}
    measured = ProductPhotos(**given, class_names=["tv", "jeans", "sofa"])
    measured.setup("validate")
    assert {measured.class_names[label] for label in measured.val_labels} == {"tv", "sofa"}
    assert all(
        file.parent.name == measured.class_names[label]
        for file, label in zip(measured.val_files, measured.val_labels, strict=True)
    )
    with pytest.raises(BadInput, match=r"received none of \['jeans'\]"):
        ProductPhotos(**given, class_names=["tv", "jeans", "sofa"]).setup("fit")
