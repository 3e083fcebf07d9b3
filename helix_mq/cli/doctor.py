"""`helix-mq doctor`: what is wrong with this machine or a process's settings, and what to do.

Changes nothing. Ends with 1 if there is a problem.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from helix_mq.doctor.findings import Finding
from helix_mq.errors import ConfigError


@dataclass(frozen=True, slots=True)
class DoctorOptions:
    model: Path | None
    key: Path | None
    url: str | None
    peers: tuple[str, ...]


def register(app: typer.Typer) -> None:
    """Adds the `doctor` command to the command line."""
    app.command()(doctor)


def doctor(
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="router.toml or node.toml.")
    ] = None,
    kind: Annotated[
        str | None, typer.Option("--as", help="router or node; default: by the settings' names.")
    ] = None,
    model: Annotated[
        Path | None, typer.Option(help="Hugging Face folder or GGUF file, over the settings'.")
    ] = None,
    key: Annotated[
        Path | None,
        typer.Option(help="Secret key file, where the settings name a service's credential."),
    ] = None,
    url: Annotated[
        str | None,
        typer.Option(
            help="The router's HTTP endpoint; default: its host, port 8000.", envvar="HELIX_MQ_URL"
        ),
    ] = None,
    peer: Annotated[
        list[str] | None,
        typer.Option(help="Data endpoint (tcp://HOST:PORT) of a node to be reached; may repeat."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Check versions, GPU, ports, keys, clock, reachability, limits, disk and model."""
    from helix_mq.doctor.findings import as_data, as_lines, exit_status

    options = DoctorOptions(model, key, url, tuple(peer or ()))
    found = asyncio.run(examine(config, kind, options))
    typer.echo(json.dumps(as_data(found), indent=2) if as_json else "\n".join(as_lines(found)))
    raise typer.Exit(exit_status(found))


async def examine(config: Path | None, kind: str | None, options: DoctorOptions) -> list[Finding]:
    """Everything, in order. Raises CallerError where it cannot be told what to look at."""
    from helix_mq.doctor.clock import ClockFacts, check_clock, collect_synchronised
    from helix_mq.doctor.findings import problem
    from helix_mq.doctor.limits import check_limits, collect_limits
    from helix_mq.doctor.parts import choose_part, installed_parts
    from helix_mq.doctor.versions import check_versions, collect_versions
    from helix_mq.settings import read_toml

    found = check_versions(collect_versions())
    parts = installed_parts()
    chosen = [*parts.values()]
    if config is not None:
        chosen = [choose_part(parts, read_toml(config), kind, config)]
    for part in chosen:
        found += await part.machine()
    found += check_limits(collect_limits())
    found += check_clock(ClockFacts(synchronised=await collect_synchronised()))
    if config is not None:
        try:
            found += await chosen[0].settings(config, options)
        except ConfigError as e:
            # Files that leave the model to the command line are as they should be.
            missing = e.param == "model" and options.model is None
            found.append(
                problem(
                    "settings",
                    str(e),
                    "this process will not start",
                    f"mend that line of {config}, or the variable HELIX_MQ_..."
                    + (", or give --model" if missing else ""),
                )
            )
    return found
