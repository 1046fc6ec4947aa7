"""An integration whose package is not installed says what to install."""

from __future__ import annotations

import subprocess
import sys

import pytest

MISSING = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == {library!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing())
import fsqueue.integrations.{module}
"""


@pytest.mark.parametrize(
    ("module", "library"),
    [
        ("ray", "ray"),
        ("nemo", "torch"),
        ("nemo", "nemo_automodel"),
        ("specforge", "specforge"),
        ("specforge", "torch"),
    ],
)
def test_the_error_says_what_to_install(module: str, library: str) -> None:
    if library == "nemo_automodel":
        pytest.importorskip("torch")
    program = MISSING.format(module=module, library=library)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"ModuleNotFoundError: fsqueue.integrations.{module} needs ")
    assert f"pip install 'fsqueue-shared[{module}]'" in last
