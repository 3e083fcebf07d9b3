"""What the command line refuses before a long search."""

from __future__ import annotations

from pathlib import Path

import pytest

from helix_mq.errors import ConfigError
from solver.cli_options import require_plan_name


def test_a_plan_is_named_as_what_it_is(tmp_path: Path) -> None:
    require_plan_name(tmp_path / "plan.toml", "save")
    with pytest.raises(ConfigError, match=r"plan\.json: the name must end in \.toml"):
        require_plan_name(tmp_path / "plan.json", "save")
    with pytest.raises(ConfigError, match="there is no folder"):
        require_plan_name(tmp_path / "none" / "plan.toml", "save")
