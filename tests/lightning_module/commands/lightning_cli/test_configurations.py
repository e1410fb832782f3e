"""A configuration that names foreign code is warned of before that is imported; a wrong name is said with its file."""

import sys
import warnings

import pytest

from lightning_module.commands.lightning_cli.configurations import OPTIONS, warn_of_foreign_code
from lightning_module.commands.lightning_cli.short_help import shipped_configs
from tests.conftest import lightning

FOREIGN = {
    "a class": "trainer: {callbacks: [{class_path: stranger.Callback}]}",
    "a class by its name alone": "trainer: {logger: os.system}",
    "one of several": "trainer: {callbacks: [timm.utils.A, subprocess.Popen]}",
    "a function of a known class": "trainer: {strategy: {class_path: torch.A, init_args: {ddp_comm_hook: os.system}}}",
    "a class of an unknown package": "model: {class_path: not_installed.deep.Module}",
    "in another file": "trainer: {logger: other.yaml}",
    "beside the file's own name": "data: {root: config.yaml}\ntrainer: {logger: os.system}",
}
NOT_FOREIGN = {
    "of Lightning": "trainer: {callbacks: [{class_path: lightning.pytorch.callbacks.Timer}], logger: torch.nn.Module}",
    "of this project": "trainer: {callbacks: [{class_path: lightning_module.fine_tuning.EmaOfWeights}]}",
    "without a package": "trainer: {callbacks: [{class_path: EarlyStopping}]}",
    "names of files": "data: {root: photos.new, val_root: ../os.system}\nckpt_path: last.ckpt",
    "what is no configuration": "{",
    "numbers": "model: {learning_rate: 0.001, hidden: [128], mean: 0.5}",
}


@pytest.mark.parametrize("text", FOREIGN.values(), ids=FOREIGN)
@pytest.mark.parametrize("spelled", ["{0} {1}", "{0}={1}"])
@pytest.mark.parametrize("option", OPTIONS)
def test_foreign_code_is_named(tmp_path, text, spelled, option):
    (tmp_path / "other.yaml").write_text("class_path: evil.Logger")
    config = tmp_path / "config.yaml"
    config.write_text(text)
    with pytest.warns(UserWarning, match=f"{config} names code outside of this project") as caught:
        warn_of_foreign_code(["fit", *spelled.format(option, config).split(" ")])
    assert len(caught) == 1
    named = ("stranger.Callback.", "os.system.", "subprocess.Popen.", "not_installed.deep.Module.", "evil.Logger.")
    assert any(f"now run: {name} " in str(caught[0].message) for name in named)


@pytest.mark.parametrize("text", NOT_FOREIGN.values(), ids=NOT_FOREIGN)
def test_all_else_is_not(tmp_path, text):
    (tmp_path / "config.yaml").write_text(text)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_foreign_code(["fit", "--config", str(tmp_path / "config.yaml"), "--x", "os.system"])


def test_own_configurations_are_not():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for config in shipped_configs().values():
            warn_of_foreign_code(["fit", "--config", str(config)])


@pytest.mark.parametrize("refused", [True, False])
def test_fit_warns_before_it_imports(tmp_path, monkeypatch, capsys, refused):
    """Where the warning is an error, nothing is imported; the other way is the control."""
    name = f"stranger_of_this_test_{refused}"
    (tmp_path / f"{name}.py").write_text("class Callback: pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    config = tmp_path / "config.yaml"
    config.write_text(f"trainer: {{callbacks: [{{class_path: {name}.Callback}}]}}\n")
    with warnings.catch_warnings():
        warnings.filterwarnings("error" if refused else "ignore", message=".*names code outside")
        if refused:
            assert lightning("fit", "--config", config) == 70
            assert f"now run: {name}.Callback" in capsys.readouterr().err
        else:
            assert lightning("fit", "--config", config) == 2  # it is no callback of Lightning's
    assert (name in sys.modules) is not refused


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("root: photos", "bad.yaml: there is no setting root. Did you mean data.root?"),
        (
            "model: {learning_rat: 0.1}",
            "bad.yaml: there is no setting model.learning_rat. Did you mean model.learning_rate",
        ),
        ("model: {schedule: {head_epoch: 2}}", "bad.yaml: there is no setting model.schedule.head_epoch. Did you mean"),
        ("data: {augmentation: {rotation: 3}}", "lightning: --data.augmentation: it has no setting rotation. See"),
    ],
)
def test_wrong_name_is_said_with_its_file_and_the_right_one(tmp_path, capsys, text, said):
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    good.write_text("data: {root: photos}")
    bad.write_text(text)
    assert lightning("fit", "--config", good, f"--config={bad}") == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert said in line
    assert "good.yaml" not in line
