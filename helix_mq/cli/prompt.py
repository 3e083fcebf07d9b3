"""`helix-mq prompt TEXT`: one request over the SDK, streamed to the terminal.

The answer goes to stdout and everything about it to stderr, so that it can be piped. Ctrl-C cancels
the request at the router too.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from helix_mq.errors import InvalidRequest
from helix_mq.sdk.options import RequestOptions
from helix_mq.sdk.results import Completion

MAX_STDIN_BYTES = 4 * 1024 * 1024
_INTERRUPTED = 130


def register(app: typer.Typer) -> None:
    """Adds the `prompt` command to the command line."""
    app.command()(prompt)


def prompt(
    text: Annotated[str, typer.Argument(help="What to say; `-` reads it from stdin.")],
    connect: Annotated[
        str, typer.Option(help="The router's `clients` address.", envvar="HELIX_MQ_CONNECT")
    ] = "tcp://127.0.0.1:7100",
    system: Annotated[str | None, typer.Option(help="A system message before it.")] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Continue the text; no chat template.")
    ] = False,
    model: Annotated[str | None, typer.Option(help="Default: what the router serves.")] = None,
    max_tokens: Annotated[
        int | None, typer.Option(help="Default: what the context leaves.")
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy. Default: 1.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Default: 1.")] = None,
    seed: Annotated[int | None, typer.Option(help="Default: drawn by the router.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="Ends the answer; may repeat.")] = None,
    deadline: Annotated[float | None, typer.Option(help="Give up after so many seconds.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the whole result as JSON.")
    ] = False,
    key: Annotated[Path | None, typer.Option(help="This client's NAME.key file.")] = None,
    server_key: Annotated[Path | None, typer.Option(help="The router's NAME.pub file.")] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="No keys, on a network you trust.")
    ] = False,
) -> None:
    """Send one prompt to a router and stream the answer, with tokens/s and TTFT at its end."""
    if raw and system is not None:
        raise InvalidRequest("--system needs the chat template, which --raw leaves out")
    given = {
        "model": model,
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "seed": seed,
        "stop": stop or None,
        "deadline_s": deadline,
    }
    options = RequestOptions(**{k: v for k, v in given.items() if v is not None})  # type: ignore[typeddict-item]
    content = _stdin() if text == "-" else text

    async def run() -> Completion:
        from helix_mq.client import Client

        client = Client(connect, key=key, server_key=server_key, insecure=insecure)
        # Made before the connection, so that a wrong option is told at once.
        if raw:
            stream = client.stream(content, **options)
        else:
            turns = [{"role": "system", "content": system}] if system is not None else []
            turns.append({"role": "user", "content": content})
            stream = client.stream_chat(turns, **options)
        async with client, stream:
            async for token in stream:
                if not as_json:
                    typer.echo(token.text, nl=False)
            return stream.result()

    try:
        result = asyncio.run(run())
        if as_json:
            typer.echo(json.dumps(asdict(result), ensure_ascii=False, indent=2))
        else:
            typer.echo()
            typer.echo(_summary(result), err=True)
    except KeyboardInterrupt:
        raise typer.Exit(_INTERRUPTED) from None
    except BrokenPipeError:
        # Whoever read the answer has enough. Python would complain once more when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(0) from None


def _stdin() -> str:
    data = sys.stdin.buffer.read(MAX_STDIN_BYTES + 1)
    if len(data) > MAX_STDIN_BYTES:
        raise InvalidRequest(f"stdin holds more than {MAX_STDIN_BYTES} bytes", param="text")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as e:
        raise InvalidRequest(f"stdin is not UTF-8 at byte {e.start}", param="text") from None


def _summary(result: Completion) -> str:
    t = result.timings
    moved = f", re-routed {t.reroutes} times" if t.reroutes else ""
    return (
        f"{result.usage.output_tokens} tokens ({result.finish_reason}), "
        f"{t.tokens_per_s:.1f} tokens/s, time to first token {t.ttft_s * 1000:.0f} ms, "
        f"{t.total_s:.2f} s in all; prompt of {result.usage.prompt_tokens} tokens{moved}"
    )
