"""The settings that docs/services.md gives can be installed as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from helix_mq.services.checks import FileFound, check_settings, path_settings
from helix_mq.services.units import Service
from helix_mq.settings import ProcessSettings, load
from helix_mq.transport.security import check_key
from nodes.settings import NodeSettings
from router.settings import RouterSettings

PAGE = (Path(__file__).parents[2] / "docs" / "services.md").read_text()
BLOCKS = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize(
    ("block", "settings", "service"),
    [
        (0, RouterSettings, Service("router")),
        (1, NodeSettings, Service("node", "alpha")),
    ],
)
def test_the_settings_of_the_page(
    block: int, settings: type[ProcessSettings], service: Service, tmp_path: Path
) -> None:
    file = tmp_path / "x.toml"
    file.write_text(BLOCKS[block] + BLOCKS[2])
    given = {"name": service.name} if service.name else {}
    values = load(settings, file, given).model_dump()
    files = {path: FileFound(exists=True) for path in path_settings(values).values()}
    assert check_settings(service, values, {**files, service.key: FileFound(exists=True)}) == []
    assert f"| `{service.config}` |" in PAGE
    assert f"| `{service.key}` |" in PAGE
    for path in (service.state, service.cache):
        assert f"| `{path}` |" in PAGE


def test_the_key_of_the_page_is_one() -> None:
    (key,) = re.findall(r'router_public_key = "(.*)"', PAGE)
    assert check_key(key, "the page") == key
