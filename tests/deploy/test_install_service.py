"""Installing and removing services on a machine in a folder.

systemctl and systemd-sysusers are the real ones, told to work below that folder; only starting,
stopping and asking whether something runs is made up, since no manager runs there.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from helix_mq.cli import build_app
from helix_mq.errors import InvalidRequest
from helix_mq.services.host import CommandFailed, Machine
from helix_mq.services.install import prepare
from helix_mq.services.plan import Plan, Run
from helix_mq.services.units import Service

pytestmark = pytest.mark.skipif(
    shutil.which("systemctl") is None or shutil.which("systemd-sysusers") is None,
    reason="systemctl or systemd-sysusers is not installed here",
)

ROUTER, ALPHA, BETA = Service("router"), Service("node", "alpha"), Service("node", "beta")
PROGRAM = "/opt/helix_mq/bin/helix-mq"

SYSTEMCTL = """\
#!/bin/sh
for last; do :; done
case "$1" in
    daemon-reload) ;;
    is-active) test -e "{root}/run/$last" ;;
    enable) {real} --root={root} -q enable "$last" && touch "{root}/run/$last" ;;
    disable) {real} --root={root} -q disable "$last" && rm -f "{root}/run/$last" ;;
    *) exec {real} --root={root} "$@" ;;
esac
"""


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    root, tools = tmp_path / "root", tmp_path / "tools"
    for folder in ("run/systemd/system", "etc/helix_mq", "srv/model", "opt/helix_mq/bin"):
        (root / folder).mkdir(parents=True)
    program = root / "opt/helix_mq/bin/helix-mq"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    tools.mkdir()
    real = {name: shutil.which(name) for name in ("systemctl", "systemd-sysusers")}
    scripts = {
        "systemctl": SYSTEMCTL.format(root=root, real=real["systemctl"]),
        "systemd-sysusers": f'#!/bin/sh\nexec {real["systemd-sysusers"]} --root={root} "$@"\n',
    }
    for name, text in scripts.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    made = Machine(root)
    for service, name in ((ROUTER, "router"), (ALPHA, "alpha"), (BETA, "beta")):
        given = "" if service is ROUTER else f'name = "{name}"\n'
        made.path(service.config).write_text(f'{given}model = "/srv/model"\n')
    return made


def installed(machine: Machine, service: Service) -> Plan:
    plan, reasons = prepare(service, machine, PROGRAM)
    assert reasons == []
    machine.carry_out(plan, lambda _: None)
    return plan


def removed(machine: Machine, service: Service) -> Plan:
    plan, reasons = prepare(service, machine, PROGRAM, uninstall=True)
    assert reasons == []
    machine.carry_out(plan, lambda _: None)
    return plan


def units(machine: Machine) -> set[str]:
    """Files and links below the folder of units."""
    folder = machine.path("/etc/systemd/system")
    return {p.name for p in folder.rglob("*") if p.is_symlink() or p.is_file()}


def test_a_router_comes_and_goes(machine: Machine) -> None:
    installed(machine, ROUTER)
    assert units(machine) == {"helix-mq-router.service"}
    assert machine.path("/etc/systemd/system/multi-user.target.wants").is_dir()
    assert "helix-mq-router" in machine.path("/etc/passwd").read_text()
    assert prepare(ROUTER, machine, PROGRAM)[0].steps == ()

    machine.path(ROUTER.key).write_text("")
    removed(machine, ROUTER)
    assert units(machine) == set()
    assert machine.path(ROUTER.config).exists()
    assert machine.path(ROUTER.key).exists()
    assert removed(machine, ROUTER).steps == ()


def test_two_nodes_share_a_unit(machine: Machine) -> None:
    installed(machine, ALPHA)
    assert [type(s) for s in installed(machine, BETA).steps] == [Run]
    assert units(machine) == {
        "helix-mq-node@.service",
        "helix-mq-node@alpha.service",
        "helix-mq-node@beta.service",
    }
    assert "helix-mq-node@.service stays" in removed(machine, ALPHA).notes[0]
    assert units(machine) == {"helix-mq-node@.service", "helix-mq-node@beta.service"}
    assert prepare(BETA, machine, PROGRAM)[0].steps == ()
    removed(machine, BETA)
    assert units(machine) == set()


def reasons_of(machine: Machine, service: Service, program: str = PROGRAM) -> str:
    return "\n".join(prepare(service, machine, program)[1])


def test_reasons_against_it(machine: Machine) -> None:
    config = machine.path(ROUTER.config)
    config.write_text('model = "/srv/model"\n[http]\nport = 99999\n')
    assert "http.port = 99999" in reasons_of(machine, ROUTER)
    config.write_text('model = "/srv/model"\n[security]\nkey_file = "$CREDENTIALS_DIRECTORY/key"\n')
    assert f"{ROUTER.key} is missing" in reasons_of(machine, ROUTER)
    config.write_text('model = "/srv/model"\n')
    assert "is no program" in reasons_of(machine, ROUTER, "/opt/none")
    assert "nothing below /root" in reasons_of(machine, ROUTER, "/root/venv/bin/helix-mq")
    machine.path("/root/pythons").mkdir(parents=True)
    machine.path("/opt/helix_mq/bin/python").symlink_to("../../../root/pythons/python3")
    script = machine.path("/opt/helix_mq/bin/other")
    script.write_text("#!/opt/helix_mq/bin/python\n")
    script.chmod(0o755)
    found = reasons_of(machine, ROUTER, "/opt/helix_mq/bin/other")
    assert "leads to /root/pythons/python3: a service sees nothing below /root" in found
    machine.path("/home/ann/model").mkdir(parents=True)
    machine.path("/srv/linked").symlink_to("../home/ann/model")
    config.write_text('model = "/srv/linked"\n')
    assert "leads to /home/ann/model" in reasons_of(machine, ROUTER)
    config.write_text('model = "/srv/model"\n')
    machine.path("/srv/model").chmod(0o700)
    assert "the user helix-mq-router cannot read it" in reasons_of(machine, ROUTER)
    machine.path("/srv/model").chmod(0o755)
    config.parent.chmod(0o700)
    assert "`chmod 755` its folder" in reasons_of(machine, ROUTER)
    config.parent.chmod(0o755)
    assert reasons_of(machine, ROUTER) == ""
    config.unlink()
    assert f"{ROUTER.config} is missing" in reasons_of(machine, ROUTER)
    machine.path("/run/systemd/system").rmdir()
    assert "systemd does not run this machine" in reasons_of(machine, ALPHA)


def test_a_file_that_the_users_group_may_read_is_readable(machine: Machine) -> None:
    installed(machine, ROUTER)
    group = next(
        int(line.split(":")[3])
        for line in machine.path("/etc/passwd").read_text().splitlines()
        if line.startswith("helix-mq-router:")
    )
    listed = machine.path("/etc/helix_mq/api-keys.toml")
    listed.write_text("")
    listed.chmod(0o640)
    assert not machine.file("/etc/helix_mq/api-keys.toml", ROUTER.user).readable
    if os.geteuid() == 0:
        os.chown(listed, 0, group)
        assert machine.file("/etc/helix_mq/api-keys.toml", ROUTER.user).readable


def test_a_step_that_fails_says_what_systemd_said(machine: Machine) -> None:
    plan = Plan((Run(("systemctl", "enable", "--now", "helix-mq-node@none.service")),))
    with pytest.raises(CommandFailed, match="`systemctl enable --now helix-mq-node@none"):
        machine.carry_out(plan, lambda _: None)


def test_the_command_shows_first_and_writes_for_packages(tmp_path: Path) -> None:
    def command(*arguments: str) -> str:
        given = ["install-service", *arguments, "--root", str(tmp_path)]
        done = CliRunner().invoke(build_app(), given, catch_exceptions=False)
        assert done.exit_code == 0
        return done.stdout

    shown = command("node", "--name", "alpha")
    assert "would do, with --apply:\n  write /etc/sysusers.d/helix-mq-node.conf" in shown
    assert list(tmp_path.iterdir()) == []
    assert "helix-mq-node@.service (" in command("node", "--name", "a", "--apply")
    assert "nothing to do" in command("node", "--name", "alpha")
    unit = tmp_path / "etc/systemd/system/helix-mq-node@.service"
    assert f"ExecStart={PROGRAM} node" in unit.read_text()
    for wrong in (("node", "--name", "../x"), ("router", "--name", "x"), ("client",)):
        with pytest.raises(InvalidRequest):
            command(*wrong)
    command("node", "--uninstall", "--apply")
    assert not unit.exists()
