"""`python -m bench.serve.check --aiperf PROGRAM`: bench serve beside NVIDIA's aiperf.

On a server whose timing is known and which writes down what it really did, in turns; and on a real
cluster, in turns, or both at once (`--together`) over the seconds in which both had their requests
under way, so that whatever else the machine does happens to both. aiperf is a program of its own,
installed apart from this project (`python -m venv aiperf && aiperf/bin/pip install aiperf`). What
came of it is in bench/results.
"""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from bench.chaos.cluster import ChaosCluster, Plan
from bench.chaos.tiny_model import NUM_LAYERS, write_tiny_model
from bench.ending import run_to_its_end
from bench.live_run import say
from bench.planner_common import machine_summary, write_results
from bench.serve.check_figures import (
    FIGURES,
    Load,
    Sent,
    aiperf_command,
    common_window,
    of_aiperf,
    of_ours,
    of_truth,
    ours_command,
    summary,
    window_figures,
)
from bench.serve.result import PACKAGES
from helix_mq.errors import LocalError

PACED_S = (1.0, 0.05)
PACED = Load(at_once=8, requests=96, warmup=8, prompt_tokens=64, output_tokens=48)
CLUSTER = Load(at_once=4, requests=300, warmup=8, prompt_tokens=64, output_tokens=48)
START_S = 180.0
LONGEST_S = 600.0


class Check:
    def __init__(
        self, aiperf: Path, rounds: int, cluster_load: Load, folder: Path, *, together: bool
    ) -> None:
        self._aiperf = aiperf
        self._rounds = rounds
        self._cluster_load = cluster_load
        self._folder = folder
        self._together = together
        self._model = write_tiny_model(folder / "model")

    async def paced(self) -> dict[str, object]:
        rounds: list[dict[str, Mapping[str, float]]] = []
        commands: dict[str, str] = {}
        for number in range(self._rounds):
            found: dict[str, Mapping[str, float]] = {}
            for who in _order(number):
                truth: dict[str, object] = {}
                async with _paced(truth) as url:
                    figures, commands[who] = await self._alone(who, url, "paced", PACED, number + 1)
                found[who], found[f"truth_of_{who}"] = figures, of_truth(truth)
                say(f"paced, round {number + 1}, {who}: {figures}; truth {of_truth(truth)}")
            rounds.append(found)
        return {
            "server": f"first token after {PACED_S[0]:g} s, then one each {PACED_S[1]:g} s",
            "how": "in turns",
            "commands": commands,
            "rounds": rounds,
            **summary(rounds),
        }

    async def cluster(self) -> dict[str, object]:
        plan = Plan(
            model=self._model,
            slices={"alpha": f"0:{NUM_LAYERS}"},
            gates=False,
            log_level="warning",
        )
        rounds: list[dict[str, Mapping[str, float]]] = []
        commands: dict[str, str] = {}
        async with ChaosCluster(plan, self._folder / "cluster") as cluster:
            await cluster.whole(START_S)
            for number in range(self._rounds):
                if self._together:
                    found = await self._both(cluster.url, number + 1, commands)
                else:
                    found = {}
                    for who in _order(number):
                        # Other prompts for each: what one sent may be kept, and quicker again.
                        seed = 2 * number + (who == "aiperf") + 1
                        found[who], commands[who] = await self._alone(
                            who, cluster.url, "chaos", self._cluster_load, seed
                        )
                say(f"cluster, round {number + 1}: {found}")
                rounds.append(found)
        return {
            "server": "a router and one node, tiny random Llama of 6 layers",
            "how": "both at once, over the seconds in which both had requests under way"
            if self._together
            else "in turns",
            "commands": commands,
            "rounds": rounds,
            **summary(rounds),
        }

    async def _alone(
        self, who: str, url: str, model: str, load: Load, seed: int
    ) -> tuple[dict[str, float], str]:
        with tempfile.TemporaryDirectory(dir=self._folder) as folder:
            out = Path(folder) / "result"
            make = aiperf_command if who == "aiperf" else ours_command
            command = make(url, model, load, self._model, out, seed)
            process = await self._start(who, command)
            await _ended(process, command)
            text = self._text(command, out, url)
            return (of_aiperf(out) if who == "aiperf" else of_ours(out)), text

    async def _both(
        self, url: str, seed: int, commands: dict[str, str]
    ) -> dict[str, Mapping[str, float]]:
        with tempfile.TemporaryDirectory(dir=self._folder) as folder:
            ours_out, aiperf_out = Path(folder) / "ours", Path(folder) / "aiperf"
            ours = ours_command(url, "chaos", self._cluster_load, self._model, ours_out, seed)
            at = ours.index("--requests")
            ours[at : at + 2] = ["--seconds", str(LONGEST_S), "--detailed"]
            theirs = aiperf_command(url, "chaos", self._cluster_load, self._model, aiperf_out, seed)
            our_process = await self._start("ours", ours)
            try:
                await _ended(await self._start("aiperf", theirs), theirs)
                # Asked so, it gives what there is.
                our_process.send_signal(signal.SIGINT)
                await _ended(our_process, ours)
            finally:
                if our_process.returncode is None:
                    our_process.kill()
                    await our_process.wait()
            commands["ours"] = self._text(ours, ours_out, url)
            commands["aiperf"] = self._text(theirs, aiperf_out, url)
            sent = {"ours": Sent.of_ours(ours_out), "aiperf": Sent.of_aiperf(aiperf_out)}
        window = common_window(sent["ours"], sent["aiperf"])
        return {who: window_figures(requests, window) for who, requests in sent.items()}

    async def _start(self, who: str, command: Sequence[str]) -> asyncio.subprocess.Process:
        program = [str(self._aiperf)] if who == "aiperf" else [sys.executable, "-m", "helix_mq"]
        return await asyncio.create_subprocess_exec(
            *program,
            *command[1:],
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            cwd=self._folder,
            start_new_session=True,
        )

    def _text(self, command: Sequence[str], out: Path, url: str) -> str:
        text = shlex.join(command).replace(str(self._model), "MODEL")
        return text.replace(str(out), "OUT").replace(url, "URL")


def _order(number: int) -> tuple[str, str]:
    """Each comes first in half of the rounds."""
    return ("ours", "aiperf") if number % 2 == 0 else ("aiperf", "ours")


@asynccontextmanager
async def _paced(truth: dict[str, object]) -> AsyncIterator[str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.serve.paced"),
        *("--ttft", str(PACED_S[0]), "--tpot", str(PACED_S[1])),
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        port = int(await process.stdout.readline())
        yield f"http://127.0.0.1:{port}"
        process.terminate()
        truth.update(json.loads(await process.stdout.readline()))
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def _ended(process: asyncio.subprocess.Process, command: Sequence[str]) -> None:
    """When this is cancelled the client is ended, with what it has started."""
    try:
        said, _ = await process.communicate()
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    if process.returncode:
        raise LocalError(f"{shlex.join(command)}: {said.decode('utf-8', 'replace')[-2000:]}")


def main(
    aiperf: Annotated[Path, typer.Option(help="The aiperf program.")],
    rounds: Annotated[int, typer.Option(min=1, max=100)] = 3,
    only: Annotated[str, typer.Option(help="paced or cluster; default: both.")] = "",
    prompt_tokens: Annotated[int, typer.Option(min=1, max=960, help="Of the cluster's.")] = 64,
    requests: Annotated[int, typer.Option(min=1, help="To the cluster.")] = 300,
    together: Annotated[bool, typer.Option(help="Both at once on the cluster.")] = False,
    out: Annotated[Path | None, typer.Option(help="Write the result there as JSON.")] = None,
) -> None:
    """Measure the same servers with both, and say how far they agree."""

    async def run() -> None:
        version = await asyncio.create_subprocess_exec(
            str(aiperf), "--version", stdout=asyncio.subprocess.PIPE
        )
        said, _ = await version.communicate()
        with tempfile.TemporaryDirectory(prefix="helix-mq-check-") as folder:
            load = replace(CLUSTER, prompt_tokens=prompt_tokens, requests=requests)
            check = Check(aiperf.absolute(), rounds, load, Path(folder), together=together)
            servers = {}
            if only != "cluster":
                servers["paced"] = await check.paced()
            if only != "paced":
                servers["cluster"] = await check.cluster()
        body: dict[str, object] = {
            "command": f"python -m bench.serve.check {shlex.join(sys.argv[1:])}",
            "machine": machine_summary(PACKAGES),
            "load_average": os.getloadavg(),
            "aiperf": said.decode().strip(),
            "figures": list(FIGURES),
            "servers": servers,
        }
        if out is not None:
            write_results(out, body)
        print(json.dumps({name: found["ours_over_aiperf"] for name, found in servers.items()}))

    run_to_its_end(run())


if __name__ == "__main__":
    typer.run(main)
