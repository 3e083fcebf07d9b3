"""Reads workload specifications: `KIND:PATH,option=value,…` or `synthetic:option=value,…`.

Text in, plain values out; errors name the option. A comma followed by `word=` starts an option, so
commas within parentheses or paths stay where they are. No file is opened here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from bench.traces.draws import (
    Arrivals,
    Bins,
    Constant,
    Distribution,
    Exponential,
    Fixed,
    Gamma,
    Lognormal,
    Poisson,
    Uniform,
)
from helix_mq.errors import ConfigError

KINDS = ("azure-conv", "azure-code", "azure", "sharegpt", "reference", "synthetic")
COMMON = ("rate", "arrivals", "max_prompt", "max_output", "over", "take")
OPTIONS: Mapping[str, tuple[str, ...]] = {
    "synthetic": ("prompt", "output", *COMMON),
    "sharegpt": ("turns", "chars_per_token", *COMMON),
}
MAX_SPEC = 4096
MAX_RATE = 1e6
_DISTRIBUTIONS: Mapping[str, tuple[Callable[..., Distribution], int]] = {
    "fixed": (Fixed, 1),
    "uniform": (Uniform, 2),
    "lognormal": (Lognormal, 2),
    "exponential": (Exponential, 1),
}


@dataclass(frozen=True, slots=True)
class Spec:
    """A specification in parts. `path` is empty for synthetic workloads.

    `rate`: requests/s, None where the file's own times hold. `over`: what becomes of requests
    beyond a limit, "drop" or "cut". `take`: at most so many requests.
    """

    kind: str
    path: str = ""
    prompt: Distribution | None = None
    output: Distribution | None = None
    rate: float | None = None
    arrivals: Arrivals | None = None
    max_prompt: int | None = None
    max_output: int | None = None
    over: str = "drop"
    take: int | None = None
    turns: str = "first"
    chars_per_token: float = 4.0


def parse_spec(text: str) -> Spec:
    """ConfigError naming the option and what it may be."""
    if len(text) > MAX_SPEC:
        raise _error(f"a specification of {len(text)} characters; at most {MAX_SPEC}")
    kind, colon, rest = text.partition(":")
    if kind not in KINDS or not colon:
        raise _error(f"{text!r} does not begin with one of {', '.join(f'{k}:' for k in KINDS)}")
    first, *options = re.split(r",(?=[a-z_]+=)", rest)
    if kind == "synthetic":
        options, first = ([first, *options] if first else options), ""
    elif not first or re.match(r"[a-z_]+=", first):
        raise _error(f"{kind}: needs a path: {kind}:PATH,option=value,…")
    given: dict[str, str] = {}
    for option in options:
        name, _, value = option.partition("=")
        allowed = OPTIONS.get(kind, COMMON)
        if name not in allowed:
            raise _error(f"{kind} has no option {name!r}; it has {', '.join(allowed)}")
        if name in given:
            raise _error(f"{name} is given twice")
        given[name] = value
    return _spec(kind, first, given)


def parse_distribution(name: str, text: str) -> Distribution:
    """`240`, or `fixed|uniform|lognormal|exponential(numbers)`."""
    if re.fullmatch(r"[0-9]+", text):
        return Fixed(_number(name, text))
    function, arguments = _call(name, text)
    if function not in _DISTRIBUTIONS:
        raise _error(f"{name}={text!r} is not a number or one of {', '.join(_DISTRIBUTIONS)}(…)")
    make, count = _DISTRIBUTIONS[function]
    numbers = [_number(name, part) for part in arguments.split(",")] if arguments else []
    if len(numbers) != count:
        raise _error(f"{name}={text!r}: {function} takes {count} numbers, not {len(numbers)}")
    try:
        return make(*numbers)
    except ConfigError as e:
        raise _error(f"{name}={text}: {e}") from None


def parse_arrivals(text: str) -> Arrivals:
    """`poisson`, `constant`, `gamma(cv)` or `bins(PATH)`."""
    if text in ("poisson", "constant"):
        return Poisson() if text == "poisson" else Constant()
    function, argument = _call("arrivals", text)
    if function == "bins" and argument:
        return Bins(Path(argument))
    if function == "gamma":
        try:
            return Gamma(_number("arrivals", argument))
        except ConfigError as e:
            raise _error(f"arrivals={text}: {e}") from None
    raise _error(f"arrivals={text!r} is not poisson, constant, gamma(cv) or bins(PATH)")


def _spec(kind: str, path: str, given: Mapping[str, str]) -> Spec:
    def distribution(name: str) -> Distribution | None:
        if kind == "synthetic" and name not in given:
            raise _error(f"synthetic needs {name}=, e.g. {name}=lognormal(6.0,1.0)")
        return parse_distribution(name, given[name]) if name in given else None

    def count(name: str) -> int | None:
        return _count(name, given[name]) if name in given else None

    return Spec(
        kind=kind,
        path=path,
        prompt=distribution("prompt") if kind == "synthetic" else None,
        output=distribution("output") if kind == "synthetic" else None,
        rate=_positive("rate", given["rate"], MAX_RATE) if "rate" in given else None,
        arrivals=parse_arrivals(given["arrivals"]) if "arrivals" in given else None,
        max_prompt=count("max_prompt"),
        max_output=count("max_output"),
        over=_choice("over", given.get("over", "drop"), ("drop", "cut")),
        take=count("take"),
        turns=_choice("turns", given.get("turns", "first"), ("first", "all")),
        chars_per_token=_positive("chars_per_token", given.get("chars_per_token", "4"), 1000),
    )


def _call(name: str, text: str) -> tuple[str, str]:
    match = re.fullmatch(r"([a-z]+)\((.*)\)", text)
    if match is None:
        return text, ""
    return match[1], match[2]


def _number(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise _error(f"{name}: {text!r} is not a finite number")
    return value


def _positive(name: str, text: str, most: float) -> float:
    value = _number(name, text)
    if not 0 < value <= most:
        raise _error(f"{name}={text} must be more than 0 and at most {most:g}")
    return value


def _count(name: str, text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,12}", text) or not int(text):
        raise _error(f"{name}={text!r} must be a whole number of at least 1")
    return int(text)


def _choice(name: str, text: str, allowed: tuple[str, ...]) -> str:
    if text not in allowed:
        raise _error(f"{name}={text!r} is not one of {', '.join(allowed)}")
    return text


def _error(problem: str) -> ConfigError:
    return ConfigError(f"workload: {problem}", param="workload")
