"""A short run of tests/fuzz_bundle.py; `make fuzz` is the long one."""

import subprocess
import sys
from pathlib import Path


def test_damaged_bundles_are_refused(environment: None, tmp_path: Path) -> None:
    """In a process of its own, whose memory is limited."""
    command = [sys.executable, str(Path(__file__).parent / "fuzz_bundle.py"), "2000"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    for kind in ("manifest", "executable", "vmfb", "bundle"):
        assert f" {kind} " in result.stdout
    assert list(tmp_path.iterdir()) == []
