"""The one name on the command line: `helix-mq`, with sub-commands.

The core's own commands are registered here; packages above it announce theirs as entry points
(group `helix_mq.commands`), each a `register(app)` function. Modules with heavy imports are loaded
only when their command runs.
"""

from __future__ import annotations

import sys
from importlib.metadata import entry_points

import typer

import helix_mq
from helix_mq.errors import CallerError, HelixError


def build_app() -> typer.Typer:
    """The whole command tree, with every installed package's commands."""
    app = typer.Typer(
        name="helix-mq",
        help="Serve one large language model across GPUs of different kinds, in different places.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )

    @app.callback(invoke_without_command=True)
    def options(
        version: bool = typer.Option(False, "--version", help="Print the version and exit."),
    ) -> None:
        if version:
            typer.echo(f"helix-mq {helix_mq.__version__}")
            raise typer.Exit

    from helix_mq.cli import demo, doctor, keys, model, prompt, service, status, top, trace

    for module in (demo, prompt, keys, model, status, top, trace, doctor, service):
        module.register(app)
    for point in sorted(entry_points(group="helix_mq.commands"), key=lambda p: p.name):
        point.load()(app)
    return app


def main() -> None:
    """Runs the command line; errors of ours end in one line and exit code 1 or 2."""
    try:
        build_app()()
    except HelixError as e:
        typer.echo(f"helix-mq: {e}", err=True)
        sys.exit(2 if isinstance(e, CallerError) else 1)
