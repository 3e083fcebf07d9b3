"""What is done to install and remove a service, and what speaks against it. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helix_mq.services.checks import FileFound, check_settings, path_settings
from helix_mq.services.plan import (
    Found,
    Plan,
    Remove,
    Run,
    Write,
    files_of,
    plan_install,
    plan_uninstall,
    step_text,
)
from helix_mq.services.units import Service

PROGRAM = "/opt/helix_mq/bin/helix-mq"
ROUTER, ALPHA = Service("router"), Service("node", "alpha")
THERE = FileFound(exists=True)


def words(plan: Plan) -> list[str]:
    return [step_text(step).split("\n")[0].split(" (")[0] for step in plan.steps]


def done_with(found: Found, plan: Plan, service: Service) -> Found:
    """The machine after the plan."""
    files = dict(found.files)
    for step in plan.steps:
        match step:
            case Write(path, text):
                files[path] = text
            case Remove(path):
                del files[path]
            case Run(("systemd-sysusers", _)):
                found = replace(found, user_exists=True)
            case Run(("systemctl", "enable", "--now", unit)):
                assert unit == service.unit
                found = replace(found, enabled=True, active=True)
            case Run(("systemctl", "disable", "--now", unit)):
                assert unit == service.unit
                found = replace(found, enabled=False, active=False)
    return replace(found, files=files)


def test_all_that_a_bare_machine_needs() -> None:
    assert words(plan_install(ALPHA, PROGRAM, Found())) == [
        "write /etc/sysusers.d/helix-mq-node.conf",
        "run systemd-sysusers helix-mq-node.conf",
        "write /etc/systemd/system/helix-mq-node@.service",
        "run systemctl daemon-reload",
        "run systemctl enable --now helix-mq-node@alpha.service",
    ]
    assert words(plan_install(ROUTER, PROGRAM, Found(), only_files=True)) == [
        "write /etc/sysusers.d/helix-mq-router.conf",
        "write /etc/systemd/system/helix-mq-router.service",
    ]


@given(
    st.sampled_from([ROUTER, ALPHA]),
    st.dictionaries(
        st.sampled_from([*files_of(ROUTER, PROGRAM), *files_of(ALPHA, PROGRAM)]),
        st.sampled_from(["", "another text", *files_of(ROUTER, PROGRAM).values()]),
    ),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
def test_a_second_time_there_is_nothing_to_do(
    service: Service, files: dict[str, str], user: bool, enabled: bool, active: bool
) -> None:
    found = Found(files, user, enabled, active)
    installed = done_with(found, plan_install(service, PROGRAM, found), service)
    assert installed.files.items() >= files_of(service, PROGRAM).items()
    assert plan_install(service, PROGRAM, installed).steps == ()
    removed = done_with(installed, plan_uninstall(service, installed), service)
    assert not removed.files.keys() & files_of(service, PROGRAM).keys()
    assert plan_uninstall(service, removed).steps == ()


def test_a_new_unit_does_not_stop_what_runs() -> None:
    installed = done_with(Found(), plan_install(ROUTER, PROGRAM, Found()), ROUTER)
    newer = plan_install(ROUTER, "/srv/helix_mq/bin/helix-mq", installed)
    assert words(newer) == [
        "replace /etc/systemd/system/helix-mq-router.service",
        "run systemctl daemon-reload",
    ]
    assert newer.notes == (
        "it runs on as it was until `systemctl restart helix-mq-router.service`",
    )
    shown = step_text(newer.steps[0])
    assert "-ExecStart=/opt/helix_mq/bin/helix-mq router --config" in shown
    assert "+ExecStart=/srv/helix_mq/bin/helix-mq router --config" in shown


def test_a_unit_that_other_nodes_run_by_stays() -> None:
    installed = done_with(Found(), plan_install(ALPHA, PROGRAM, Found()), ALPHA)
    plan = plan_uninstall(ALPHA, replace(installed, others=("helix-mq-node@beta.service",)))
    assert words(plan) == ["run systemctl disable --now helix-mq-node@alpha.service"]
    assert any("helix-mq-node@beta.service run by it" in note for note in plan.notes)


def test_removal_says_what_stays() -> None:
    notes = "\n".join(plan_uninstall(ALPHA, Found()).notes)
    for left in (ALPHA.config, ALPHA.key, ALPHA.state, ALPHA.cache, ALPHA.user):
        assert left in notes


def findings(service: Service = ROUTER, **values: Any) -> list[str]:
    values = {"model": "/srv/model", **({"name": service.name} if service.name else {}), **values}
    files = dict.fromkeys([*path_settings(values).values(), service.key], THERE)
    files["/srv/gone"] = FileFound(exists=False)
    files["/srv/secret"] = FileFound(exists=True, readable=False)
    return check_settings(service, values, files)


def test_sound_settings_are_let_through() -> None:
    handed = {"key_file": "$CREDENTIALS_DIRECTORY/key", "allow_file": "/etc/helix_mq/allow.toml"}
    journal = {"path": "/var/lib/helix_mq/router/journal.db"}
    assert findings() == []
    assert findings(security=handed, journal=journal) == []
    assert findings(ALPHA, security={"key_file": "${CREDENTIALS_DIRECTORY}/key"}) == []


@pytest.mark.parametrize(
    ("values", "part"),
    [
        (
            {"model": "/home/ann/model"},
            "model = /home/ann/model: a service sees nothing below /home",
        ),
        ({"model": "/root/m.gguf"}, "nothing below /root"),
        ({"model": "models/x"}, "needs an absolute path"),
        ({"model": "/srv/gone"}, "model = /srv/gone: there is no such file"),
        ({"http": {"keys_file": "/srv/secret"}}, "`chgrp helix-mq-router /srv/secret`"),
        ({"journal": {"path": "/srv/j.db"}}, "e.g. /var/lib/helix_mq/router/journal.db"),
        ({"security": {"key_file": "/etc/helix_mq/router.key"}}, 'key_file = "$CREDENTIALS_DIR'),
        ({"security": {"key_file": "$CREDENTIALS_DIRECTORY/other"}}, "a service is handed its key"),
        ({"security": {"key_file": "$CREDENTIALS_DIRECTORY/a/b"}}, "with one name"),
    ],
)
def test_what_the_service_could_not_use_is_named(values: dict[str, Any], part: str) -> None:
    (text,) = findings(**values)
    assert part in text


def test_a_missing_key_and_another_name() -> None:
    values = {"name": "beta", "security": {"key_file": "$CREDENTIALS_DIRECTORY/key"}}
    other, missing = check_settings(ALPHA, values, {ALPHA.key: FileFound(exists=False)})
    assert "name = beta in /etc/helix_mq/node-alpha.toml" in other
    assert "`helix-mq keys new node-alpha --folder /etc/helix_mq`" in missing
