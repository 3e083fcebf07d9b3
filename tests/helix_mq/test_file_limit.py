"""The limit on open files is raised, in a process of its own: it cannot be taken back."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 1000))
from helix_mq.file_limit import raise_file_limit
assert raise_file_limit() == 1000
assert raise_file_limit() == 1000
"""


def test_as_far_as_the_system_lets_it() -> None:
    subprocess.run([sys.executable, "-c", PROGRAM], check=True, timeout=240)
