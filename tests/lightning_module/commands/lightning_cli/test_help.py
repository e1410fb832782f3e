"""What the help says is what the commands take, and it is there at once."""

import dataclasses
import subprocess
import sys
from typing import Any

import pytest
import yaml

from datamodule.augment import Augmentation
from datamodule.product_photos import ProductPhotos
from lightning_module.classifier import ProductClassifier
from lightning_module.commands.cli import COMMANDS, SYNONYMS
from lightning_module.commands.lightning_cli.short_help import GROUPS, WIDTH, shipped_configs, short_help
from lightning_module.commands.lightning_cli.training import LINKED, TrainingCLI, with_shipped_configs
from models.bad_input import BadInput
from tests.conftest import lightning

OURS = ("data", "model", "hand_over", "checkpoint", "last_checkpoint")
"""Groups of settings that are this project's own; of Lightning's, the help has a choice."""
UNLISTED = {
    "data.predict_root", "data.augmentation", "model.graph", *(f"model.{name}" for name in LINKED),
}  # fmt: skip
"""Used from Python alone; listed setting by setting; comes with a checkpoint; taken from the data."""


@pytest.mark.parametrize("command", COMMANDS)
def test_help_imports_no_torch(command):
    code = f"import sys; from lightning_module.commands.cli import main; main([{command!r}, '--help'])"
    code = f"try:\n    {code.replace('; ', chr(10) + '    ')}\nexcept SystemExit:\n    pass\n"
    code += "print(*sorted({'torch', 'lightning', 'timm', 'tensorflow'} & sys.modules.keys()), file=sys.stderr)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stderr.strip() == ""
    assert f"usage: lightning {command}" in shown.stdout


@pytest.mark.parametrize("command", ["fit", "validate", "test"])
def test_short_help_fits_on_two_screens(command, capsys):
    assert lightning(command, "--data.root", "photos", "--help") == 0
    lines = capsys.readouterr().out.rstrip("\n").split("\n")
    assert "\n".join(lines) == short_help(command)
    assert len(lines) <= 120
    assert max(map(len, lines)) <= WIDTH


def test_help_all_has_lightnings_settings_too(capsys):
    assert lightning("fit", "--help_all") == 0
    shown = capsys.readouterr().out
    assert "--trainer.limit_train_batches" in shown
    assert "--data.root" in shown
    assert "--trainer.limit_train_batches" not in short_help("fit")


def listed(command: str) -> dict[str, str]:
    return {
        group.prefix + name: default
        for group in GROUPS
        if command in group.commands
        for name, default, _ in group.settings
    }


@pytest.fixture(scope="module")
def defaults() -> dict[str, dict[str, Any]]:
    """Command -> setting -> default, as the real parser has them."""
    found = {}

    class Parsed(TrainingCLI):
        def parse_arguments(self, parser, args) -> None:
            for command in ("fit", "validate", "test"):
                found[command] = dict(self._parser(command).get_defaults().items(branches=False))
            raise StopIteration

    with pytest.raises(StopIteration):
        Parsed(
            ProductClassifier, ProductPhotos, args=["fit"], seed_everything_default=0,
            trainer_defaults={"default_root_dir": "runs/latest", "max_epochs": 30}, auto_configure_optimizers=False,
        )  # fmt: skip
    fields = {f"data.augmentation.{each.name}": each.default for each in dataclasses.fields(Augmentation) if each.init}
    found["fit"] |= fields
    return found


@pytest.mark.parametrize("command", ["fit", "validate", "test"])
def test_settings_and_defaults_are_the_parsers(command, defaults):
    known = defaults[command]
    unspoken = {"config", "print_config", "help_all"}
    assert set(listed(command)) - unspoken <= known.keys()
    stated = {name: yaml.safe_load(default) for name, default in listed(command).items() if name not in unspoken}
    received = {name: list(known[name]) if isinstance(known[name], tuple) else known[name] for name in stated}
    received |= {name: None for name in ("ckpt_path",) if name in received}
    assert stated == received


def test_no_setting_of_ours_is_left_out(defaults):
    ours = {name for name in defaults["fit"] if name.partition(".")[0] in OURS}
    assert ours - listed("fit").keys() == UNLISTED & ours
    assert len(ours) > 60


@pytest.mark.parametrize("group", [group for group in GROUPS if "fit" in group.commands], ids=lambda group: group.title)
def test_each_setting_is_taken_with_its_default(group, tmp_path):
    """As the help has it: the name, a space, the value."""
    given = [
        each
        for name, default, _ in group.settings
        if default not in ("", "null")
        for each in (f"--{group.prefix}{name}", default)
    ]

    class Parsed(TrainingCLI):
        def instantiate_classes(self) -> None:
            raise StopIteration

    with pytest.raises(StopIteration):
        Parsed(
            ProductClassifier, ProductPhotos, seed_everything_default=0, auto_configure_optimizers=False,
            args=["fit", f"--trainer.default_root_dir={tmp_path}", *given, f"--trainer.default_root_dir={tmp_path}"],
        )  # fmt: skip


@pytest.mark.parametrize(("said", "meant"), SYNONYMS.items())
def test_names_known_from_elsewhere_are_told_ours(said, meant, capsys):
    assert meant in COMMANDS
    assert lightning(said, "--data.root", "photos") == 2
    assert f"Did you mean {meant!r}?" in capsys.readouterr().err


def test_a_configuration_that_comes_along_is_found_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    demo, gpu = (str(shipped_configs()[name]) for name in ("demo", "gpu"))
    assert with_shipped_configs(["fit", "--config", "demo", "-c=gpu"]) == ["fit", "--config", demo, f"-c={gpu}"]
    own = tmp_path / "demo"
    own.write_text("seed_everything: 1")
    assert with_shipped_configs(["fit", "--config", "demo", "--config=a.yaml"]) == [
        "fit", "--config", "demo", "--config=a.yaml",
    ]  # fmt: skip
    text = '{"data": {"batch_size": 17}, "model": {"hidden": [' + ", ".join(["8"] * 99) + "]}}"
    for given in (text, "[]", "no/file", "recipe.yaml"):  # the parser's matter
        assert with_shipped_configs(["fit", "--config", given]) == ["fit", "--config", given]
    with pytest.raises(BadInput, match="demo, distil, finetune, gpu, mobilenetv2"):
        with_shipped_configs(["fit", "--config", "recipe"])
