"""`helix-mq node`."""

from __future__ import annotations

from pathlib import Path

import typer

from helix_mq.cli.group import WithDefault
from nodes.cli_drain import drain


class _NodeGroup(WithDefault):
    """`helix-mq node` is `helix-mq node run`."""

    default_command = "run"
    runs_alone = True


def register(app: typer.Typer) -> None:
    group = typer.Typer(
        name="node", cls=_NodeGroup, help="Run a node: `node`; have one leave: `node drain NAME`."
    )
    group.command(name="drain")(drain)
    app.add_typer(group)

    @group.command(name="run")
    def run_node(
        config: Path | None = typer.Option(None, "--config", "-c", help="Settings file (TOML)."),
        name: str | None = typer.Option(None, help="This node's name in the cluster."),
        router: str | None = typer.Option(None, help="The router's control endpoint."),
        listen: str | None = typer.Option(None, help="Where this node's data socket binds."),
        advertise: str | None = typer.Option(None, help="Data endpoint as peers see it."),
        model: Path | None = typer.Option(None, help="Hugging Face folder or GGUF file."),
        device: str | None = typer.Option(None, help="auto, cpu, cuda or cuda:N."),
        dtype: str | None = typer.Option(None, help="auto, float32, bfloat16 or float16."),
        quantise: str | None = typer.Option(None, help="Weights in fewer bits: int8 or int4."),
        memory: str | None = typer.Option(None, help="For weights and KV cache, e.g. 8GiB."),
        threads: int | None = typer.Option(None, help="CPU threads of the engine."),
        log_level: str | None = typer.Option(None, help="debug, info, warning or error."),
        log_format: str | None = typer.Option(None, help="auto, plain, journal or json."),
    ) -> None:
        """Run a node: join the router's cluster, load a slice, serve it."""
        from helix_mq.process import run
        from helix_mq.settings import load
        from nodes.tuning import before_torch

        before_torch()
        from nodes.main import serve
        from nodes.settings import NodeSettings

        settings = load(
            NodeSettings,
            config,
            {
                "name": name,
                "router": router,
                "listen": listen,
                "advertise": advertise,
                "model": model,
                "device": device,
                "dtype": dtype,
                "quantise": quantise,
                "memory": memory,
                "threads": threads,
                "log_level": log_level,
                "log.format": log_format,
            },
        )
        settings.start_logging(node=settings.name)
        run(lambda stop: serve(settings, stop))
