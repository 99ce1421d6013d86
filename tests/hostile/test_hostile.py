"""The hostile trial in its short form, without kills; `long.py` is the long one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

TRIAL = Path(__file__).with_name("long.py")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="processes are forked and killed")
def test_nothing_lost_and_nothing_executed(tmp_path):
    counts = tmp_path / "counts.json"
    command = [sys.executable, str(TRIAL), "--rounds", "4", "--kills", "0", "--json", str(counts)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    table = json.loads(counts.read_text())
    assert all(sum(row.values()) == (1 if "si-jax" in k else 4) for k, row in table.items()), table
    assert sum(row.get("sentence", 0) for row in table.values()) > len(table), table
