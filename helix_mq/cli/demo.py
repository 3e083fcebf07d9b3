"""`helix-mq demo`: everything at once, on this machine."""

from __future__ import annotations

from pathlib import Path

import typer

_PROMPT = "In two sentences: why is the sky blue?"


def register(app: typer.Typer) -> None:
    @app.command()
    def demo(
        once: bool = typer.Option(False, "--once", help="End after the first answer."),
        model: Path | None = typer.Option(
            None, help="Hugging Face folder or GGUF file; default: SmolLM2-135M-Instruct."
        ),
        prompt: str = typer.Option(_PROMPT, help="The first question."),
        max_tokens: int = typer.Option(96, min=1, help="Length of the first answer."),
        port: int = typer.Option(8000, min=0, max=65_535, help="HTTP port; 0 takes a free one."),
    ) -> None:
        """Start a router and three unequal nodes here, ask a question, keep the endpoint up."""
        from helix_mq.cli.demo_show import DemoRun
        from helix_mq.process import run

        show = DemoRun(model, prompt, max_tokens, port, once)
        run(show.main, at_once=show.kill)
