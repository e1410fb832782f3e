"""What tests of data sets share; `made` is each file's own."""

from pathlib import Path

import pytest


@pytest.fixture
def there(made, tmp_path, monkeypatch) -> Path:
    """A working folder of its own, with links to all that was made."""
    for each in made.iterdir():
        (tmp_path / each.name).symlink_to(each)
    monkeypatch.chdir(tmp_path)
    return tmp_path
