from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

_PROGRAM = """
import resource
from nodes.tuning import keep_freed_memory

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def write_and_free():
    # Larger ones first, as frames come: glibc's own threshold would follow them.
    for size_bytes in (1 << 18, 1 << 20, 3 << 20):
        block = bytearray(size_bytes)
        block[::4096] = bytes(size_bytes // 4096)
        block[:] = bytes(size_bytes)

print(keep_freed_memory())
for _ in range(3):
    write_and_free()
before = faults()
for _ in range(8):
    write_and_free()
print(faults() - before)
"""


def _run(**env: str) -> tuple[str, int]:
    """What `keep_freed_memory` said, and page faults of using freed memory again."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM],
        check=True,
        timeout=240,
        stdout=subprocess.PIPE,
        text=True,
        env=clean | env,
    )
    said, faults = done.stdout.split()
    return said, int(faults)


@pytest.mark.skipif(
    not hasattr(os, "confstr") or not (os.confstr("CS_GNU_LIBC_VERSION") or ""),
    reason="glibc only",
)
def test_freed_memory_is_used_again_without_page_faults() -> None:
    said, faults = _run()
    assert said == "True"
    # By itself glibc takes 12,000 pages for it, which the kernel clears.
    assert faults < 1000


@pytest.mark.parametrize("name", ["MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"])
def test_what_the_environment_says_of_memory_is_left_as_it_is(name: str) -> None:
    value = "131072" if name.startswith("MALLOC") else "glibc.malloc.trim_threshold=131072"
    said, _ = _run(**{name: value})
    assert said == "False"


@pytest.mark.parametrize("policy", [{}, {"GOMP_SPINCOUNT": "77"}])
def test_threads_sleep_soon_as_the_runtime_was_told_in_time(
    tmp_path: Path, policy: dict[str, str]
) -> None:
    """By the command itself: what is set after the first import of torch does nothing."""
    options = ["--name", "a", "--router", "tcp://127.0.0.1:9", "--model", str(tmp_path / "none")]
    done = subprocess.run(
        [str(Path(sys.executable).with_name("helix-mq")), "node", *options],
        timeout=240,
        capture_output=True,
        text=True,
        env={k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}
        | {"OMP_DISPLAY_ENV": "verbose"}
        | policy,
    )
    assert done.returncode != 0, "there is no such model"
    if "GOMP_SPINCOUNT" not in done.stderr:
        pytest.skip("torch uses another OpenMP runtime here")
    assert f"GOMP_SPINCOUNT = '{policy.get('GOMP_SPINCOUNT', 20000)}'" in done.stderr
