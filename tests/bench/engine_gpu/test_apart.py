"""A command ends within its limit, with all it has started, and says how it ended."""

from __future__ import annotations

import signal
import subprocess
import sys

import psutil

from bench.engine_gpu.apart import end, run_apart


def _python(script: str, *arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-S", "-c", script, *arguments)


def test_how_a_command_ended_is_said() -> None:
    assert run_apart(_python("pass"), 60.0) == ""
    assert run_apart(_python("raise SystemExit(3)"), 60.0) == "its process ended with code 3"
    dies = f"import os; os.kill(os.getpid(), {int(signal.SIGSEGV)})"
    assert run_apart(_python(dies), 60.0) == "its process was ended by SIGSEGV"


def test_what_takes_too_long_is_ended() -> None:
    reason = run_apart(_python("import signal; signal.pause()"), 0.2)
    assert reason == "ended after 0 s, which is its limit"


def test_what_ignores_being_told_is_killed_with_its_descendants() -> None:
    script = """
import signal, subprocess, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-S", "-c", "import signal; signal.pause()"],
                         start_new_session=True)
print(child.pid, flush=True)
signal.pause()
"""
    with subprocess.Popen(_python(script), stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        child = psutil.Process(int(process.stdout.readline()))
        end(process, grace_s=0.1)
        assert process.returncode == -signal.SIGKILL
    # Where nobody is there to reap it, it stays as a zombie.
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
