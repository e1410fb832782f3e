"""Checkpoints are read without unpickling anything, and only this project's."""

import shutil
from pathlib import Path

import pytest
import torch

from export.checkpoint import read_checkpoint
from lightning_module.run.checkpoint_io import AtomicCheckpoints
from models.bad_input import BadInput
from models.state_dicts import check_undamaged
from tests.conftest import flip_in_archive, random_classifier, save_checkpoint


def test_network_computes_what_was_saved(tmp_path):
    network = random_classifier(
        backbone="mobilenetv2_035", hidden=(8, 6), pad_type="same", bn_eps=1e-3, mean=0.5, std=0.5
    )
    read = read_checkpoint(save_checkpoint(tmp_path / "a.ckpt", network, (32, 48)))
    photos = torch.rand(2, 3, 32, 48)
    with torch.no_grad():
        assert torch.equal(read.network(photos), network(photos))
    assert (read.image_size, read.class_names[0], len(read.digest)) == ((32, 48), "jeans", 64)


def test_checkpoint_of_another_model_is_refused(tmp_path):
    path = tmp_path / "other.ckpt"
    torch.save({"state_dict": {"weight": torch.zeros(3)}, "hyper_parameters": {"lr": 0.1}}, path)
    with pytest.raises(BadInput, match="of another model"):
        read_checkpoint(path)
    torch.save(torch.zeros(3), path)
    with pytest.raises(BadInput, match="of another model"):
        read_checkpoint(path)


def test_weights_of_another_width_are_refused(tmp_path):
    network = random_classifier(backbone="mobilenetv2_035")
    path = save_checkpoint(tmp_path / "a.ckpt", network, (32, 32), backbone="mobilenetv2_050")
    with pytest.raises(BadInput, match="do not fit"):
        read_checkpoint(path)


class Code:
    def __reduce__(self):
        return print, ("run by unpickling",)


def test_checkpoint_with_code_in_it_is_refused_and_not_run(tmp_path, capsys):
    path = tmp_path / "evil.ckpt"
    torch.save({"state_dict": {}, "hyper_parameters": Code()}, path)
    with pytest.raises(BadInput, match="cannot be read"):
        read_checkpoint(path)
    assert "run by unpickling" not in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"", b".", b"R.", b"not a checkpoint", b"PK\x03\x04 cut short"])
def test_file_that_is_no_checkpoint_is_refused(tmp_path, content):
    path = tmp_path / "broken.ckpt"
    path.write_bytes(content)
    with pytest.raises(BadInput, match=r"cannot be read|is damaged") as caught:
        read_checkpoint(path)
    assert "weights_only=False" not in str(caught.value)  # torch's own advice, which would run what is in the file


WRONG_FACTS = [
    {"class_names": 3},
    {"interpolation": 1},
    {"interpolation": "neareqt"},
    {"trainable": "heaf"},
    {"trainable": ["head"]},
    {"learning_rate": "fast"},
    {"learning_rate": -0.001},
    {"learning_rate": 0.0},
    {"learning_rate": float("nan")},
    {"learning_rate": float("inf")},
    {"image_size": [True, True]},
    {"image_size": [32, 0]},
    {"image_size": [65536, 65536]},
    {"hidden": [True]},
    {"hidden": [1] * 100_000},
]


@pytest.mark.parametrize("change", WRONG_FACTS, ids=lambda change: str(change)[:40])
def test_hyper_parameters_that_no_training_has_are_refused(tmp_path, change):
    path = save_checkpoint(tmp_path / "a.ckpt", random_classifier(backbone="mobilenetv2_035"), (32, 32), **change)
    (name,) = change
    with pytest.raises(BadInput, match=rf"no usable {name} \(expected .*, got "):
        read_checkpoint(path)


def test_size_beyond_the_limit_is_named_with_the_limit(tmp_path):
    path = save_checkpoint(
        tmp_path / "a.ckpt", random_classifier(backbone="mobilenetv2_035"), (32, 32), image_size=[8001, 8000]
    )
    with pytest.raises(BadInput, match=r"at most 64 megapixels, got \[8001, 8000\]"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    "change", [{"mean": 2**2000}, {"dropout": "much"}, {"bn_eps": [1]}], ids=["mean", "dropout", "bn_eps"]
)
def test_settings_of_no_network_are_refused(tmp_path, change):
    path = save_checkpoint(tmp_path / "a.ckpt", random_classifier(backbone="mobilenetv2_035"), (32, 32), **change)
    with pytest.raises(BadInput, match="expected settings that a network can be built from"):
        read_checkpoint(path)


KERNEL = "network.head.predictions.weight"


def quantised(tensor):
    return torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8)


def change_kernel(folder, change):
    """A checkpoint whose last layer's kernel is something else."""
    path = save_checkpoint(folder / "a.ckpt", random_classifier(backbone="mobilenetv2_035", hidden=()), (32, 32))
    content = torch.load(path, weights_only=True)
    content["state_dict"][KERNEL] = change(content["state_dict"][KERNEL])
    torch.save(content, path)
    return path


@pytest.mark.parametrize(
    "change",
    [
        lambda kernel: kernel.to_sparse(),
        quantised,
        lambda kernel: kernel.to("meta"),
        lambda kernel: kernel[:1, :1].clone().expand_as(kernel),
    ],
    ids=["sparse", "quantised", "meta", "expanded"],
)
@pytest.mark.filterwarnings("ignore")  # torch's, that quantisation and sparse tensors will change
def test_tensors_that_are_not_plain_arrays_are_refused(tmp_path, change):
    with pytest.raises(BadInput, match=r"expected plain dense tensors, got 1 .*head\.predictions\.weight"):
        read_checkpoint(change_kernel(tmp_path, change))


def not_in_float32(kernel):
    kernel = kernel.double()
    kernel[0, 0] += 1e-12
    return kernel


@pytest.mark.parametrize(
    "change",
    [not_in_float32, lambda kernel: kernel.double() * 1e300, lambda kernel: kernel + 0j, lambda kernel: kernel.long()],
    ids=["float64", "too large", "complex", "integers"],
)
def test_weights_that_float32_does_not_hold_are_refused(tmp_path, change):
    with pytest.raises(BadInput, match=r"head\.predictions\.weight .*--trainer\.precision 32-true"):
        read_checkpoint(change_kernel(tmp_path, change))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_weights_of_another_type_with_values_of_float32_are_taken_as_they_are(tmp_path, dtype):
    path = change_kernel(tmp_path, lambda kernel: kernel.bfloat16().to(dtype))
    expected = torch.load(path, weights_only=True)["state_dict"][KERNEL].float()
    kernel = read_checkpoint(path).network.head.predictions.weight
    assert kernel.dtype == torch.float32
    assert torch.equal(kernel, expected)


def test_counter_that_is_no_whole_number_is_refused(tmp_path):
    path = save_checkpoint(tmp_path / "a.ckpt", random_classifier(backbone="mobilenetv2_035"), (32, 32))
    content = torch.load(path, weights_only=True)
    content["state_dict"]["network.backbone.bn1.num_batches_tracked"] = torch.tensor(1.5)
    torch.save(content, path)
    with pytest.raises(BadInput, match=r"num_batches_tracked \(torch\.float32\)"):
        read_checkpoint(path)


@pytest.fixture
def little_memory():
    """What a network of a claimed size would take is not there."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_AS)
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (in_use + (1 << 30), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="limits memory as Linux does")
@pytest.mark.parametrize("hidden", [[65536, 65536], [1 << 40]], ids=str)
def test_network_larger_than_its_weights_is_refused_before_it_is_built(tmp_path, little_memory, hidden):
    network = random_classifier(backbone="mobilenetv2_035", hidden=(8,) * len(hidden))
    path = save_checkpoint(tmp_path / "a.ckpt", network, (32, 32), hidden=hidden)
    with pytest.raises(BadInput, match=r"head\.dense\.weight is \(8, 1280\), not"):
        read_checkpoint(path)


def test_one_array_under_many_names_is_no_large_network(tmp_path):
    network = random_classifier(backbone="mobilenetv2_035", hidden=(1280,) * 9)
    path = save_checkpoint(tmp_path / "a.ckpt", network, (32, 32))
    content = torch.load(path, weights_only=True)
    for number in range(1, 9):
        content["state_dict"][f"network.head.dense_{number}.weight"] = content["state_dict"][
            "network.head.dense.weight"
        ]
    torch.save(content, path)
    with pytest.raises(BadInput, match="some of them under several names"):
        read_checkpoint(path)


def test_note_of_an_import_that_is_no_text_is_none(tmp_path):
    path = save_checkpoint(tmp_path / "a.ckpt", random_classifier(backbone="mobilenetv2_035"), (32, 32))
    content = torch.load(path, weights_only=True)
    torch.save({**content, "shelftwin_import": {"sha256": 3, "input_range": []}}, path)
    read = read_checkpoint(path)
    assert (read.imported_from, read.imported_range) == (None, None)


def test_state_dict_that_is_none_is_refused(tmp_path):
    path = tmp_path / "a.ckpt"
    torch.save({"state_dict": [1, 2], "hyper_parameters": {}}, path)
    with pytest.raises(BadInput, match="no state_dict"):
        read_checkpoint(path)


def test_folder_is_refused(tmp_path):
    with pytest.raises(BadInput, match="is a folder"):
        read_checkpoint(tmp_path)


def test_missing_checkpoint_is_refused(tmp_path):
    with pytest.raises(BadInput, match="does not exist"):
        read_checkpoint(tmp_path / "none.ckpt")


@pytest.mark.parametrize("member", ["data.pkl", "data/0", "data/30", "data/100"])
def test_flipped_bit_is_noticed(tmp_path, small_checkpoint, member):
    path = Path(shutil.copy(small_checkpoint, tmp_path / "flipped.ckpt"))
    check_undamaged(path)
    flip_in_archive(path, member)
    with pytest.raises(BadInput, match=r"flipped\.ckpt, which is damaged: the checksum of .*" + member):
        read_checkpoint(path)
    with pytest.raises(BadInput, match="which is damaged"):
        AtomicCheckpoints().load_checkpoint(path)


def test_torch_itself_notices_no_flipped_weight(tmp_path, small_checkpoint, monkeypatch):
    """The negative control: without the check other weights are read."""
    path = Path(shutil.copy(small_checkpoint, tmp_path / "flipped.ckpt"))
    flip_in_archive(path, "data/30")
    monkeypatch.setattr("export.checkpoint.check_undamaged", lambda path: None)
    states = [read_checkpoint(each).network.state_dict() for each in (path, small_checkpoint)]
    assert (
        sum(not torch.equal(left, right) for left, right in zip(*(each.values() for each in states), strict=True)) == 1
    )


@pytest.mark.parametrize(
    ("share", "said"),
    [(0.0, "it is empty"), (0.1, "it ends before"), (0.7, "it ends before"), (0.999, "it ends before")],
)
def test_a_checkpoint_that_was_cut_off_is_damaged_and_named_with_the_remedy(tmp_path, small_checkpoint, share, said):
    """As after a full disk or a copy that was broken off."""
    data = small_checkpoint.read_bytes()
    path = tmp_path / "last.ckpt"
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(
        BadInput, match=rf"last\.ckpt, which is damaged: {said}.*one in its folder previous\), or train"
    ):
        read_checkpoint(path)
    with pytest.raises(BadInput, match="which is damaged"):
        AtomicCheckpoints().load_checkpoint(path)


def test_truncated_table_of_contents_is_noticed(tmp_path, small_checkpoint):
    data = bytearray(small_checkpoint.read_bytes())
    data[data.rindex(b"PK\x01\x02") + 20] ^= 255  # a size in the last entry of the archive's list
    path = tmp_path / "damaged.ckpt"
    path.write_bytes(data)
    with pytest.raises(BadInput, match="damaged"):
        read_checkpoint(path)
