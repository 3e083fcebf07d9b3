"""`helix-mq keys new|show|allow|revoke|list`: key pairs, and who may connect.

Prints public keys and fingerprints only.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from helix_mq import keys
from helix_mq.cli import keys_api
from helix_mq.errors import CallerError

_Folder = Annotated[
    Path, typer.Option("--folder", "-d", help="Folder of the key files.", show_default=True)
]
_List = Annotated[
    Path, typer.Option("--list", "-l", help="The allow-list file (`allow_file` of a router).")
]
_DEFAULT_FOLDER = Path("keys")
_DEFAULT_LIST = Path("keys/allow.toml")


def register(app: typer.Typer) -> None:
    """Adds the `keys` commands to the command line."""
    group = typer.Typer(
        name="keys",
        help="CURVE keys: make pairs, show them, say who may connect; `api`: keys for HTTP.",
        no_args_is_help=True,
    )
    for command in (new, show, allow, revoke):
        group.command()(command)
    group.command("list")(list_allowed)
    keys_api.register(group)
    app.add_typer(group)


def new(name: str, folder: _Folder = _DEFAULT_FOLDER) -> None:
    """Make a key pair: NAME.key stays secret on this machine, NAME.pub may travel."""
    pair = keys.KeyPair.new()
    path = keys.save_key(folder, name, pair)
    typer.echo(f"secret key   {path} (keep it on this machine)")
    _print_public(pair.public)


def show(
    name: Annotated[str, typer.Argument(help="A name in the folder, or the path of a key file.")],
    folder: _Folder = _DEFAULT_FOLDER,
) -> None:
    """Print a public key and its fingerprint."""
    _print_public(keys.load_public_key(_find(name, folder)))


def allow(
    name: Annotated[str, typer.Argument(help="The node or client, as it names itself.")],
    public_key: Annotated[
        str | None, typer.Argument(help="Its public key; left out, NAME.pub is read.")
    ] = None,
    client: Annotated[
        bool, typer.Option("--client", help="For requests only: listed as @NAME, which no node is.")
    ] = False,
    allow_list: _List = _DEFAULT_LIST,
    folder: _Folder = _DEFAULT_FOLDER,
) -> None:
    """Let a key in under a name. A key the name had before is no longer let in."""
    public = public_key or keys.load_public_key(_find(name, folder))
    if client:
        name = f"@{name.removeprefix('@')}"
    keys.allow_key(allow_list, name, public)
    typer.echo(f"{name} ({keys.fingerprint(public.strip())}) may connect: {allow_list}")


def revoke(name: str, allow_list: _List = _DEFAULT_LIST) -> None:
    """Take a name and its key off the allow-list: a running router cuts it off within 2 s."""
    listed = name if name in keys.read_allow_list(allow_list) else f"@{name.removeprefix('@')}"
    if not keys.revoke_key(allow_list, listed):
        raise CallerError(f"{name} is not on {allow_list}", param="name")
    typer.echo(f"{listed} may no longer connect: {allow_list}")


def list_allowed(allow_list: _List = _DEFAULT_LIST) -> None:
    """List who may connect: name, fingerprint, public key."""
    entries = sorted(keys.read_allow_list(allow_list).items())
    width = max((len(name) for name, _ in entries), default=0)
    for name, public in entries:
        typer.echo(f"{name:<{width}}  {keys.fingerprint(public)}  {public}")
    if not entries:
        typer.echo(f"{allow_list}: nobody may connect yet", err=True)


def _find(name: str, folder: Path) -> Path:
    """The .pub file of a name where there is one, else its .key file; or the path itself."""
    if name.endswith((".pub", ".key")):
        return Path(name)
    pub = folder / f"{name}.pub"
    return pub if pub.exists() else folder / f"{name}.key"


def _print_public(public: str) -> None:
    typer.echo(f"public key   {public}")
    typer.echo(f"fingerprint  {keys.fingerprint(public)}")
