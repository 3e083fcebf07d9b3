"""`helix-mq keys api new|list|revoke`: who may use the HTTP endpoint.

A key is printed once, alone on stdout, when it is made: `KEY=$(helix-mq keys api new NAME)`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from helix_mq import api_keys
from helix_mq.api_keys import KeyLimits
from helix_mq.errors import CallerError

_DEFAULT_FILE = Path("keys/api.toml")
_File = Annotated[
    Path, typer.Option("--file", "-f", help="The keys of the endpoint (`http.keys_file`).")
]
_Limit = Annotated[int | None, typer.Option(min=1, help="Left out, there is no such limit.")]


def register(keys: typer.Typer) -> None:
    """Adds the `api` commands to `helix-mq keys`."""
    group = typer.Typer(
        name="api",
        help="API keys of the HTTP endpoint: make, list and revoke them.",
        no_args_is_help=True,
    )
    for command in (new, revoke):
        group.command()(command)
    group.command("list")(list_keys)
    keys.add_typer(group)


def new(
    name: Annotated[str, typer.Argument(help="Whose key it is; for logs and `revoke`.")],
    operator: Annotated[
        bool, typer.Option("--operator", help="It may also drain nodes and re-plan.")
    ] = False,
    requests_per_min: _Limit = None,
    tokens_per_min: _Limit = None,
    max_concurrent: _Limit = None,
    file: _File = _DEFAULT_FILE,
) -> None:
    """Make a key and print it, this once: the file keeps its digest only."""
    limits = KeyLimits(
        requests_per_min=requests_per_min,
        tokens_per_min=tokens_per_min,
        max_concurrent=max_concurrent,
    )
    key = api_keys.add_api_key(file, name, limits, operator=operator)
    typer.echo(key)
    what = "an operator's key" if operator else "a key"
    typer.echo(
        f"{name} has {what} ({file}); it is shown this once and kept as a digest. A running router "
        "that has this file as http.keys_file takes it within 2 s.",
        err=True,
    )


def revoke(name: str, file: _File = _DEFAULT_FILE) -> None:
    """Take a key back: its open requests end, and it is refused from then on."""
    if not api_keys.revoke_api_key(file, name):
        raise CallerError(f"{name} has no key in {file}", param="name")
    typer.echo(f"the key of {name} is revoked: {file}; a running router follows within 2 s")


def list_keys(file: _File = _DEFAULT_FILE) -> None:
    """List the keys: name, beginning of the digest, when made, what they may do."""
    found = sorted(api_keys.read_api_keys(file).items())
    width = max((len(name) for name, _ in found), default=0)
    for name, key in found:
        may = ("operator",) if key.operator else ()
        what = ", ".join((*may, *filter(None, (key.limits.text(),)))) or "no limits"
        typer.echo(f"{name:<{width}}  {key.mark}  {key.created or '?':<10}  {what}")
    if not found:
        typer.echo(f"{file}: there are no keys yet, so nobody may use the endpoint", err=True)
