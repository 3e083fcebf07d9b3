"""`helix-mq bench planner` and `bench simulator`: their benchmarks by name.

Each has options of its own, which it reads and explains itself.
"""

from __future__ import annotations

from typing import Annotated

import typer

from helix_mq.errors import ConfigError

OWN_OPTIONS = {
    "allow_extra_args": True,
    "ignore_unknown_options": True,
    "help_option_names": ["--help-all"],
}
"""`--help` after the name is for the benchmark of that name."""


def planner(
    context: typer.Context,
    what: Annotated[
        str, typer.Argument(help="targets, heuristics, scale, roofline or serving.")
    ] = "--help",
) -> None:
    """Measure the planner: published targets and heuristics, scale, speed tables, serving.

    `helix-mq bench planner WHAT --help` has the options.
    """
    from bench.planner import main

    main([what, *context.args])


def simulator(
    context: typer.Context,
    what: Annotated[str, typer.Argument(help="speed, reference or trucks.")] = "",
) -> None:
    """Measure the simulator: its speed, the published cases, what slows prompts down.

    `helix-mq bench simulator WHAT --help` has the options.
    """
    from bench import slow_trucks
    from bench.simulator import speed
    from bench.simulator.reference import __main__ as reference

    match what:
        case "speed":
            speed.main(context.args)
        case "trucks":
            slow_trucks.main(context.args)
        case "reference":
            raise typer.Exit(reference.main(context.args))
        case _:
            said = "--help" if what in ("", "--help") else what
            raise ConfigError(
                f"bench simulator {said}: give one of speed, reference, trucks, then --help for "
                "its options",
                param="what",
            )
