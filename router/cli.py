"""`helix-mq router`."""

from __future__ import annotations

from pathlib import Path

import typer

from helix_mq.cli.group import WithDefault
from router.cli_replan import replan


class _RouterGroup(WithDefault):
    """`helix-mq router` is `helix-mq router run`."""

    default_command = "run"
    runs_alone = True


def register(app: typer.Typer) -> None:
    group = typer.Typer(
        name="router",
        cls=_RouterGroup,
        help="Run the router: `router`; look for a better placement: `router replan`.",
    )
    group.command(name="replan")(replan)
    app.add_typer(group)

    @group.command(name="run")
    def run_router(
        config: Path | None = typer.Option(None, "--config", "-c", help="Settings file (TOML)."),
        model: Path | None = typer.Option(None, help="Hugging Face folder or GGUF file."),
        clients: str | None = typer.Option(None, help="Endpoint for SDK clients."),
        control: str | None = typer.Option(None, help="Endpoint for nodes."),
        data: str | None = typer.Option(None, help="Endpoint for tokens from last hops."),
        http_host: str | None = typer.Option(None, help="Address of the HTTP endpoint."),
        http_port: int | None = typer.Option(None, help="Port of the HTTP endpoint."),
        nodes_expected: int | None = typer.Option(
            None,
            help="Place the layers (unless settings fix them) once so many nodes are there.",
        ),
        log_level: str | None = typer.Option(None, help="debug, info, warning or error."),
        log_format: str | None = typer.Option(None, help="auto, plain, journal or json."),
    ) -> None:
        """Run the router: membership, routes, requests, and the OpenAI-compatible endpoint."""
        from helix_mq.process import run
        from helix_mq.settings import load
        from router.main import serve
        from router.settings import RouterSettings

        settings = load(
            RouterSettings,
            config,
            {
                "model": model,
                "clients": clients,
                "control": control,
                "data": data,
                "http.host": http_host,
                "http.port": http_port,
                "placement.nodes_expected": nodes_expected,
                "log_level": log_level,
                "log.format": log_format,
            },
        )
        settings.start_logging()
        run(lambda stop: serve(settings, stop))
