"""tools/simulate_cluster.py: a 70B study played through, whose table is in docs/cluster.md."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def test_more_machines_are_quicker_and_the_docs_say_by_how_much():
    words = [sys.executable, str(ROOT / "tools" / "simulate_cluster.py"), "--workers", "1", "16"]
    done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=ROOT)
    alone, many = (line.split("|") for line in done.stdout.splitlines()[2:])
    docs = (ROOT / "docs" / "cluster.md").read_text()
    for row in (alone, many):
        assert "|".join(row[:4]) in docs  # machines, time, speed-up
    assert float(alone[3]) == 1 and 8 < float(many[3]) <= 16
