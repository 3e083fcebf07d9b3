"""`helix-mq install-service`: a router or a node as a systemd service, shown first, then made."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path
from typing import Annotated

import typer

from helix_mq.errors import InvalidRequest, LocalError
from helix_mq.services.host import Machine
from helix_mq.services.plan import step_text
from helix_mq.services.units import Service


class Refused(LocalError):
    """The service cannot be installed as things are."""

    code = "refused"


def register(app: typer.Typer) -> None:
    app.command("install-service")(install_service)


def install_service(
    kind: Annotated[str, typer.Argument(help="router or node.")],
    name: Annotated[
        str | None, typer.Option(help="The node's name; default: this machine's.")
    ] = None,
    apply: Annotated[
        bool, typer.Option("--apply/--dry-run", help="Do it; else it is only shown.")
    ] = False,
    uninstall: Annotated[
        bool, typer.Option("--uninstall", help="Stop it and take it away; settings and state stay.")
    ] = False,
    program: Annotated[
        str | None, typer.Option(help="The helix-mq to start; default: this one.")
    ] = None,
    root: Annotated[
        Path | None,
        typer.Option(help="Write the files below this folder and run nothing (for packages)."),
    ] = None,
) -> None:
    """Run a router or a node as a systemd service: shows the steps; --apply takes them."""
    from helix_mq.services.install import prepare

    service = _service(kind, name)
    machine = Machine(root if root is not None else Path("/"))
    only_files = root is not None
    plan, reasons = prepare(service, machine, program, uninstall=uninstall, only_files=only_files)
    if apply and not reasons:
        if not only_files and plan.steps and os.geteuid() != 0:
            reasons = [f"only root can do that: run it again as `sudo {_again(service)}`"]
        else:
            machine.carry_out(plan, lambda text: typer.echo(f"{text}: done"))
    elif plan.steps and not reasons:
        typer.echo("would do, with --apply:")
        for step in plan.steps:
            typer.echo(f"  {step_text(step)}")
    if reasons:
        done = "removed" if uninstall else "installed"
        raise Refused("\n  ".join([f"{service.unit} is not {done}:", *reasons]))
    if not plan.steps:
        typer.echo("nothing to do")
    for note in plan.notes:
        typer.echo(f"note: {note}")


def _service(kind: str, name: str | None) -> Service:
    if kind == "router":
        if name is not None:
            raise InvalidRequest("--name: a router has none; a machine has one", param="name")
        return Service("router")
    if kind != "node":
        raise InvalidRequest(f"{kind!r}: say router or node", param="kind")
    named = name or socket.gethostname().split(".")[0]
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", named) is None:
        raise InvalidRequest(
            f"--name {named!r}: 1 to 64 letters, digits, `.`, `_` or `-`", param="name"
        )
    return Service("node", named)


def _again(service: Service) -> str:
    named = f" --name {service.name}" if service.name else ""
    return f"helix-mq install-service {service.kind}{named} --apply"
