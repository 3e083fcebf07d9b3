"""`helix-mq node` beside `helix-mq node drain NAME`: a group with a command of its own."""

from __future__ import annotations

from typing import Any

from typer.core import TyperGroup


class WithDefault(TyperGroup):
    """A group whose first argument, when it names no sub-command, goes to `default_command`."""

    default_command = "make"
    runs_alone = False
    """Without arguments too; else they are asked for by showing the help."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """The group's help, then the default command's: its options are what people look for."""
        super().format_help(ctx, formatter)
        command = self.commands[self.default_command]
        command.format_help(
            type(ctx)(command, info_name=ctx.info_name, parent=ctx.parent), formatter
        )

    # typer brings its own copy of click under a private name, so the context has no public type.
    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        first = next((a for a in args if not a.startswith("-")), None)
        asks_for_help = bool({"--help"} & set(args)) and first is None
        given = bool(args) or self.runs_alone
        if given and not asks_for_help and first not in self.commands:
            args = [self.default_command, *args]
        return super().parse_args(ctx, args)
