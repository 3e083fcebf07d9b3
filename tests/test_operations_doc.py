"""docs/operations.md explains every code with which anything can be refused, and no others."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from helix_mq.errors import HelixError

ROOT = Path(__file__).parents[1]
PACKAGES = ("helix_mq", "router", "nodes", "solver", "bench")
TEXT = (ROOT / "docs/operations.md").read_text()
REFUSALS = TEXT.partition("## What each refusal means")[2]

SAID_OF_REFUSALS = {
    # Who says no: which argument is the code.
    "Rejected": 0,
    "Refusal": 0,
    "_refuse": 1,
    "_give_up": 1,
    "_lost": 1,
    "RefusedItem": 2,
    "plain_error_response": 2,
}
BY_STATUS = {"not_found", "method_not_allowed", "http_error"}
"""What a status without a class of ours becomes (router/gateway/app.py)."""
NO_REFUSALS = {"open", "continue"}
"""Verdicts that let a row in."""


def classes(root: type[HelixError]) -> Iterator[type[HelixError]]:
    yield root
    for below in root.__subclasses__():
        yield from classes(below)


@pytest.fixture(scope="module")
def error_codes() -> set[str]:
    for package in PACKAGES:
        found = pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}.")
        for module in found:
            # Those run in the environments of other programs.
            peers = module.name.startswith("bench.engine.peers.")
            if not (module.name.endswith("__main__") or peers):
                importlib.import_module(module.name)
    ours = [c for c in classes(HelixError) if c.__module__.partition(".")[0] in PACKAGES]
    return {c.code for c in ours}


def spoken_codes() -> set[str]:
    """Codes that are no class's: texts in the calls that refuse rows, nodes and connections."""
    codes = set(BY_STATUS)
    for package in ("helix_mq", "router", "nodes"):
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call):
                    codes |= _code_of(node)
                elif isinstance(node, ast.Assign):
                    codes |= _code_of_pair(node)
                elif isinstance(node, ast.ClassDef) and node.name == "Verdict":
                    texts = (n.value for n in ast.walk(node) if isinstance(n, ast.Assign))
                    codes |= {str(v.value) for v in texts if isinstance(v, ast.Constant)}
    return codes - NO_REFUSALS


def _code_of(call: ast.Call) -> set[str]:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    at = SAID_OF_REFUSALS.get(name)
    if at is None or len(call.args) <= at:
        return set()
    code = call.args[at]
    return {code.value} if isinstance(code, ast.Constant) and isinstance(code.value, str) else set()


def _code_of_pair(assignment: ast.Assign) -> set[str]:
    """Of `code, reason = "a_code", ...`."""
    target, value = assignment.targets[0], assignment.value
    if not (isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple)):
        return set()
    names = [name.id for name in target.elts if isinstance(name, ast.Name)]
    first = value.elts[0]
    if names != ["code", "reason"] or not isinstance(first, ast.Constant):
        return set()
    return {str(first.value)}


def explained() -> set[str]:
    rows = [line for line in REFUSALS.splitlines() if line.startswith("| `")]
    return {code for row in rows for code in re.findall(r"`([a-z_]+)`", row.split("|")[1])}


def test_every_refusal_is_explained(error_codes: set[str]) -> None:
    spoken = spoken_codes()
    assert {"wrong_model", "not_allowed", "deadline", "out_of_order", "no_spec"} <= spoken
    assert (error_codes | spoken) - explained() == set(), "add a row for each"


def test_nothing_is_explained_that_is_not_said(error_codes: set[str]) -> None:
    # A node that has no slice, or not that one, says so in a tuple of its own.
    of_no_slice = {"not_ready", "stale_epoch"}
    assert explained() - error_codes - spoken_codes() - of_no_slice == set(), "drop these rows"


def test_every_row_says_what_it_means_and_what_to_do() -> None:
    for line in REFUSALS.splitlines():
        if line.startswith("| `"):
            cells = [c.strip() for c in line.strip("|").split("|")]
            assert len(cells) in (3, 4), line
            assert all(cells), line


def test_links_lead_somewhere() -> None:
    beside = {"services.md", "security.md", "seeing.md", "console.md"}
    for name in set(re.findall(r"\]\(([a-z-]+\.md)", TEXT)) - beside:
        assert (ROOT / "docs" / name).is_file(), name
    for name in re.findall(r"`((?:examples|tests)/[a-z_/.-]+)`", TEXT):
        assert (ROOT / name).exists(), name
