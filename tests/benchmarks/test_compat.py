"""`make compat`: its table of environments, how it judges, what it writes. Starting the old Kerases is its own work."""

import copy
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from export.proof.image_sets import ImageSet
from export.proof.report import Check, Report
from export.torch_to_keras import write_twin
from export.worker.keras_process import run_keras
from tests.conftest import ROOT, load_script

SCRIPT = ROOT / "benchmarks" / "compat.py"
GOOD = {
    "versions": {"python": "3.11.7", "keras": "3.15.1", "backend": "jax", "numpy": "2.4.6", "jax": "0.9"},
    "checks": {"layers_float64": [1e-14, True], "probabilities_photos": [2e-7, True], "labels": [0, True]},
    "verify": {"passed": True, "lines": ["pass  weights"]},
    "use": {
        "summary": 40,
        "loss": 2.3,
        "moved": ["dense"],
        "moved_though_frozen": [],
        "saved": {".h5": 0.0},
        "not_loaded": {},
    },
    "problems": [],
}


@pytest.fixture(scope="module")
def compat():
    return load_script(SCRIPT)


def test_environments_are_named_once_and_ci_takes_both_generations(compat):
    names = [environment.name for environment in compat.ENVIRONMENTS]
    assert len(set(names)) == len(names)
    assert set(compat.IN_CI) <= set(names)
    assert sum(name.startswith("tf") for name in compat.IN_CI) == 2
    assert all(name in compat.read_arguments(["--only", name]).only for name in names)


def test_what_is_good_has_no_problems(compat):
    assert compat.problems_of(GOOD) == []


@pytest.mark.parametrize(
    ("where", "key", "value", "says"),
    [
        ("verify", "passed", False, "verify: pass  weights"),
        ("use", "loss", float("nan"), "fit: loss nan"),
        ("use", "moved", [], "0 layers moved"),
        ("use", "moved_though_frozen", ["bn_Conv1"], "frozen layers: bn_Conv1"),
        ("use", "saved", {".keras": 1e-3}, "saved as .keras"),
        ("use", "saved", {".keras": float("nan")}, "saved as .keras"),
        ("use", "not_loaded", {".keras": "no build"}, "cannot be loaded again: no build"),
        ("use", "summary", 0, "summary"),
    ],
)
def test_what_is_wrong_is_said(compat, where, key, value, says):
    result = copy.deepcopy(GOOD)
    result[where][key] = value
    (problem,) = compat.problems_of(result)
    assert says in problem


def test_page_has_a_row_for_every_environment_and_names_what_failed(compat):
    first, second, third, fourth = (environment.name for environment in compat.ENVIRONMENTS[:4])
    results = {
        first: GOOD,
        second: {**GOOD, "problems": ["weights: 1 at Conv1"]},
        third: {"versions": {}, "checks": {}, "verify": {}, "use": {}, "problems": ["cannot load"]},
        fourth: {"skipped": "no interpreter"},
    }
    text = compat.page(results, "a network", "2.15.0", "2026-11-23")
    rows = {line.split(" | ")[0].strip("| "): line for line in text.splitlines() if line.startswith("| ")}
    assert rows[first].endswith("| 2e-07 | PASS | 2.3000 | 0.0e+00 | PASS |".replace("2e-07", "2.0e-07"))
    assert "jax 0.9" in rows[first]
    assert rows[second].endswith("FAIL |")
    assert rows[third].endswith("FAIL |")
    assert rows[fourth].endswith("no interpreter |")
    assert rows[compat.ENVIRONMENTS[5].name].endswith("not run |")
    assert f"{second}:\n- weights: 1 at Conv1" in text


FROZEN = "training_steps: 0.00274 at Conv1/kernel. Conv1 is frozen in the checkpoint, and this Keras trains it."
# Name of an environment -> what is known of its Keras, and what is near to that and is no such thing.
KNOWN = {
    "keras-3.0": (
        [FROZEN, "fit moved frozen layers: Conv1, bn_Conv1, expanded_conv_depthwise"],
        [
            "training_steps: 0.00274 at Conv1/kernel",
            "training_steps: inf at None",
            FROZEN.replace("0.00274", "0.0274"),
            FROZEN.replace("0.00274", "274"),
            FROZEN.replace("Conv1/", "dense/"),
            "training_steps: 0.002 at dense/kernel. The file's training configuration is not Adam at the checkpoint's "
            "learning rate with Keras's epsilon.",
            f"{FROZEN} And more.",
            "fit: loss nan, 0 layers moved",
        ],
    ),
    "tf.keras-2.13": (
        ["saved as .keras, cannot be loaded again: 'Adam' object has no attribute 'build'."],
        ["saved as .h5, cannot be loaded again: 'Adam' object has no attribute 'build'."],
    ),
}


def test_every_excuse_is_tested(compat):
    assert {environment.name for environment in compat.ENVIRONMENTS if environment.known} == KNOWN.keys()


@pytest.mark.parametrize("name", KNOWN)
def test_only_what_is_known_of_a_keras_is_excused(compat, name):
    old = next(environment for environment in compat.ENVIRONMENTS if environment.name == name)
    known, others = KNOWN[name]
    assert compat.failures_of(old, {"problems": known}) == []
    assert compat.failures_of(old, {"problems": [*known, *others]}) == others
    assert compat.failures_of(compat.ENVIRONMENTS[0], {"problems": known}) == known
    assert "PASS, but see below" in compat.row(old, {**GOOD, "problems": known})
    assert old.because in compat.page({old.name: {**GOOD, "problems": known}}, "", "", "")


def test_first_failure_is_stated_with_its_cause(compat):
    checks = [
        Check(name, False, 0.00274, 0, "", "", first)
        for name, first in (("training_steps", "Conv1/kernel"), ("b", "x"))
    ]
    report = Report({}, {}, checks, likely_cause="Conv1 is frozen in the checkpoint, and this Keras trains it.")
    assert compat.check_problems(report) == [FROZEN, "b: 0.00274 at x"]
    assert compat.check_problems(Report({}, {}, checks))[0] == "training_steps: 0.00274 at Conv1/kernel"
    assert compat.check_problems(Report({}, {}, [])) == []


def test_interpreter_is_found_or_said_to_be_missing(compat):
    own = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert compat.find_interpreter(own) == Path(sys.executable)
    assert compat.find_interpreter("2.6") is None


def test_packages_that_cannot_be_had_are_named(compat, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    missing = compat.Environment("none", "3.11", ("shelftwin-no-such-package==0.0.1",))
    with pytest.raises(compat.CannotInstall, match="shelftwin-no-such-package"):
        compat.make_environment(missing, Path(sys.executable))
    assert not (compat.cache_folder() / "none").exists()


def test_environments_alone_can_be_made(compat, monkeypatch, capsys):
    made = []

    def make(environment, interpreter):
        if environment.name == "keras-newest":
            raise compat.CannotInstall("no registry")
        made.append(environment.name)
        return Path("python")

    monkeypatch.setattr(compat, "make_environment", make)
    monkeypatch.setattr(compat, "find_interpreter", lambda version: Path("python"))
    monkeypatch.setattr(sys, "argv", ["compat.py", "--ci", "--install"])
    assert compat.main() == 2
    assert made == list(compat.IN_CI[:-1])
    assert "no registry" in capsys.readouterr().err


def test_interpreter_of_an_environment_is_said_and_made_if_it_is_not_there(compat, monkeypatch, capsys):
    made = []

    def make(environment, interpreter):
        made.append((environment.name, interpreter))
        return Path("there") / "python"

    monkeypatch.setattr(compat, "make_environment", make)
    monkeypatch.setattr(compat, "find_interpreter", lambda version: Path("python"))
    monkeypatch.setattr(sys, "argv", ["compat.py", "--python", "tf.keras-2.12"])
    assert compat.main() == 0
    assert capsys.readouterr().out == "there/python\n"
    assert made == [("tf.keras-2.12", Path("python"))]
    monkeypatch.setattr(compat, "find_interpreter", lambda version: None)
    assert compat.main() == 0
    said = capsys.readouterr()
    assert (said.out, len(made)) == ("", 1)
    assert "Python 3.11 is not installed" in said.err


def test_ci_runs_the_tests_that_need_an_old_keras_in_an_environment_that_it_makes(compat):
    """They were skipped everywhere once, because nothing named an interpreter."""
    root = ROOT
    makefile, ci = (root / "Makefile").read_text(), (root / ".ci" / "run").read_text().splitlines()
    recipe = makefile.partition("\ntest-keras2:")[2].partition("\n\n")[0]
    (name,) = re.findall(r"compat\.py --python (\S+)\)", recipe)
    assert name in compat.IN_CI
    assert "export SHELFTWIN_KERAS2_PYTHON" in recipe
    assert ci.index('wait "$installing" || true  # what failed there, compat-ci says') < ci.index("make test-keras2")


def test_variables_that_choose_a_keras_are_set_for_a_while(compat, monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    with compat.variables_set({"TF_USE_LEGACY_KERAS": "1"}):
        assert "KERAS_BACKEND" not in compat.os.environ
        assert compat.os.environ["TF_USE_LEGACY_KERAS"] == "1"
    assert compat.os.environ["KERAS_BACKEND"] == "jax"
    assert "TF_USE_LEGACY_KERAS" not in compat.os.environ


@pytest.mark.keras
def test_keras_trains_on_saves_and_loads_again(compat, small_checkpoint, tmp_path):
    twin = write_twin(small_checkpoint, tmp_path / "m.h5").path
    photos = np.random.default_rng(0).integers(0, 256, (4, 48, 40, 3), dtype=np.uint8)
    images = ImageSet("photos", photos, ()).save(tmp_path, "unit")
    task = {"task": "use", **images, "labels": [0, 1, 2, 3], "folder": str(tmp_path)}
    ((verified, use),) = run_keras([(twin, [{"task": "verify"}, task])])["results"]
    assert compat.problems_of({"verify": verified, "use": use}) == []
    assert {"dense", "predictions"} >= set(use["moved"])
    assert set(use["saved"]) == {".keras", ".h5"}
