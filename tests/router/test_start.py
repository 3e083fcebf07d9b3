"""What a router's process loads before it serves: each kill of it costs this anew."""

from __future__ import annotations

import subprocess
import sys


def test_it_starts_without_what_only_plans_and_commands_need() -> None:
    code = (
        "import sys\n"
        "from helix_mq.cli import build_app\n"
        "build_app()\n"
        "import router.main\n"
        "late = {'networkx', 'httpx', 'cvxpy', 'highspy', 'torch', 'matplotlib'}\n"
        "sys.exit(f'loaded already: {early}' if (early := late & set(sys.modules)) else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
