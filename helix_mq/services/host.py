"""The machine: what there is of a service, and carrying a plan out.

Everything is looked at and written below `root`, which is `/` but for packages and tests.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from helix_mq.errors import LocalError
from helix_mq.services.checks import FileFound
from helix_mq.services.plan import Found, Plan, Remove, Run, Write, step_text
from helix_mq.services.units import DEFAULT_PROGRAM, UNIT_FOLDER, Service

_COMMAND_S = 120.0


class CommandFailed(LocalError):
    code = "command_failed"


class Machine:
    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root

    def path(self, path: str) -> Path:
        return self._root / path.lstrip("/")

    def no_systemd(self) -> str:
        """Why services cannot be run here; empty when they can."""
        if not self.path("/run/systemd/system").is_dir():
            return (
                "systemd does not run this machine (there is no /run/systemd/system): have what "
                "does start `helix-mq router` or `helix-mq node`; --root DIR writes the units "
                "for a package"
            )
        if shutil.which("systemctl") is None:
            return "there is no systemctl in PATH"
        return ""

    def look(self, service: Service, paths: Iterable[str], *, only_files: bool = False) -> Found:
        """`paths`: the files the service is made of."""
        files = {p: self.path(p).read_text() for p in paths if self.path(p).is_file()}
        if only_files:
            return Found(files)
        return Found(
            files,
            user_exists=self._ids(service.user) is not None,
            enabled=_says_yes("systemctl", "is-enabled", "--quiet", service.unit),
            active=_says_yes("systemctl", "is-active", "--quiet", service.unit),
            others=self._others(service),
        )

    def _others(self, service: Service) -> tuple[str, ...]:
        """Other nodes of this machine that are started at boot."""
        if service.kind == "router":
            return ()
        wants = self.path(f"{UNIT_FOLDER}/multi-user.target.wants")
        units = sorted(p.name for p in wants.glob("helix-mq-node@*.service"))
        return tuple(unit for unit in units if unit != service.unit)

    def file(self, path: str, user: str) -> FileFound:
        """Whether `path` is there, and whether `user` could read it."""
        here = self.path(path)
        try:
            exists = here.exists()
        except PermissionError:
            return FileFound(exists=True, readable=False)
        if not exists:
            return FileFound(exists=False)
        folders = [p for p in here.parents if p.is_relative_to(self._root) and p != self._root]
        real = self._real(here)
        need, ids = 0o5 if here.is_dir() else 0o4, self._ids(user)
        return FileFound(
            exists=True,
            readable=_may(here, ids, need) and all(_may(folder, ids, 0o1) for folder in folders),
            real=real,
        )

    def interpreter(self, program: str) -> str:
        """What runs a script, after all links; empty for others."""
        try:
            with self.path(program).open("rb") as f:
                first = f.readline(1_024)
        except OSError:
            return ""
        named = first.removeprefix(b"#!").split() if first.startswith(b"#!/") else []
        return self._real(self.path(os.fsdecode(named[0]))) if named else ""

    def _real(self, here: Path) -> str:
        real = Path(os.path.realpath(here))
        root = Path(os.path.realpath(self._root))
        return f"/{real.relative_to(root)}" if real.is_relative_to(root) else str(real)

    def _ids(self, user: str) -> tuple[int, int] | None:
        """Numbers of a user and its group. systemd-sysusers makes local users."""
        try:
            lines = self.path("/etc/passwd").read_text(errors="replace").splitlines()
        except OSError:
            return None
        for line in lines:
            match line.split(":"):
                case [name, _, uid, gid, *_] if name == user and (uid + gid).isdecimal():
                    return int(uid), int(gid)
        return None

    def carry_out(self, plan: Plan, say: Callable[[str], None]) -> None:
        """Raises LocalError at the first step that fails; those before it stay done."""
        for step in plan.steps:
            say(step_text(step).split("\n", 1)[0])
            try:
                match step:
                    case Write(path, text):
                        self._write(self.path(path), text)
                    case Remove(path):
                        self.path(path).unlink(missing_ok=True)
                    case Run(command):
                        _run(command)
            except OSError as e:
                raise LocalError(f"{step_text(step)}: {e.strerror}") from None

    def _write(self, path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(f".{path.name}.new")
        new.write_text(text)
        new.chmod(0o644)
        new.replace(path)


def this_program() -> str:
    """The `helix-mq` that runs now, by its absolute path."""
    called = shutil.which(sys.argv[0])
    if called is not None and Path(called).name == "helix-mq":
        return os.path.abspath(called)
    beside = Path(sys.executable).parent / "helix-mq"
    return str(beside) if beside.exists() else DEFAULT_PROGRAM


def _run(command: tuple[str, ...]) -> None:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_COMMAND_S, check=False
        )
    except FileNotFoundError:
        raise CommandFailed(f"{command[0]}: there is no such program in PATH") from None
    except subprocess.TimeoutExpired:
        raise CommandFailed(f"`{' '.join(command)}` did not end in {_COMMAND_S:.0f} s") from None
    if done.returncode:
        said = (done.stderr or done.stdout).strip()[-1_000:]
        raise CommandFailed(f"`{' '.join(command)}` failed ({done.returncode}): {said}")


def _says_yes(*command: str) -> bool:
    try:
        return subprocess.run(command, capture_output=True, timeout=30, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def _may(path: Path, ids: tuple[int, int] | None, need: int) -> bool:
    """By the file's mode alone; access lists may say more."""
    found = path.stat()
    uid, gid = ids if ids is not None else (-1, -1)
    shift = 6 if found.st_uid == uid else 3 if found.st_gid == gid else 0
    return (found.st_mode >> shift) & need == need
