"""Settings from a TOML file, the environment (`HELIX_MQ_*`) and flags, in rising priority.

Each process has one frozen settings class derived from Settings. `load` merges the three sources
and raises ConfigError naming the field, the value and what is expected; no traceback reaches a
user. Nested fields: `[http] port` in TOML, `HELIX_MQ_HTTP__PORT` in the environment.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from helix_mq.errors import ConfigError
from helix_mq.logs import Format, Level, configure

S = TypeVar("S", bound="Settings")


class Section(BaseModel):
    """A `[table]` of a settings file: frozen, and strict about names."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class LogSection(Section):
    """What is logged, and in which form; see helix_mq.logs. `levels` are of single loggers, e.g.
    `"router.gateway" = "debug"`."""

    level: Level = "info"
    format: Format = "auto"
    levels: dict[str, Level] = Field(default_factory=dict, max_length=64)


class Settings(BaseSettings):
    """Base of a process's settings."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        env_prefix="HELIX_MQ_",
        env_nested_delimiter="__",
        nested_model_default_partial_update=True,
    )
    file_values: ClassVar[dict[str, Any]] = {}

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, _FileSource(settings_cls)


class ProcessSettings(Settings):
    """Base of the settings of a process that runs for long."""

    log: LogSection = LogSection()
    log_level: Level | None = Field(None, description="in place of log.level")

    def start_logging(self, **fields: str) -> None:
        """`fields` stand on every line of JSON."""
        log = self.log
        configure(self.log_level or log.level, log.format, levels=log.levels, fields=fields)


class _FileSource(PydanticBaseSettingsSource):
    """The values of the TOML file that `load` has read for this class."""

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
        return None, field_name, False

    def __call__(self) -> dict[str, Any]:
        return dict(getattr(self.settings_cls, "file_values", {}))


def read_toml(path: Path) -> dict[str, Any]:
    """The file's tables; ConfigError when it cannot be read or parsed."""
    try:
        with path.open("rb") as f:
            return tomllib.load(f)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file", param="config") from None
    except OSError as e:
        raise ConfigError(f"{path}: cannot be read: {e.strerror}", param="config") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise ConfigError(f"{path}: not valid TOML: {e}", param="config") from None


def load(cls: type[S], path: Path | None, flags: Mapping[str, Any] | None = None) -> S:
    """Settings of `cls`: flags over environment over file over defaults.

    `flags` uses dotted names (`http.port`); None values count as not given. Relative paths in the
    file are left as they are.
    """
    nested: dict[str, Any] = {}
    for name, value in (flags or {}).items():
        if value is None:
            continue
        at = nested
        *tables, leaf = name.split(".")
        for table in tables:
            at = at.setdefault(table, {})
        at[leaf] = value
    values = read_toml(path) if path is not None else {}
    # A subclass made for this one load carries the file's values, so nothing global is set.
    bound = type(cls.__name__, (cls,), {"file_values": values, "__module__": cls.__module__})
    try:
        loaded: S = bound(**nested)
    except ValidationError as e:
        where = f"{path}: " if path is not None else ""
        raise ConfigError(where + describe(e), param=first_field(e)) from None
    except ValueError as e:
        # pydantic-settings wraps environment values it cannot parse.
        raise ConfigError(f"environment: {e}", param="environment") from None
    return loaded


def describe(error: ValidationError) -> str:
    """Every fault in one line each: field, value given, what is wrong."""
    lines = []
    for fault in error.errors(include_url=False):
        field = ".".join(str(part) for part in fault["loc"]) or "settings"
        if fault["type"] == "extra_forbidden":
            lines.append(f"{field}: there is no such setting")
        elif fault["type"] == "missing":
            lines.append(f"{field}: missing, and it has no default")
        else:
            lines.append(f"{field} = {_short(fault.get('input'))}: {fault['msg']}")
    return "; ".join(lines)


def first_field(error: ValidationError) -> str:
    return ".".join(str(part) for part in error.errors()[0]["loc"]) or "settings"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
