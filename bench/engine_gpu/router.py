"""The suite's router: the production one, also where the package is not installed and so has no
`helix-mq` of its sub-commands.

python -m bench.engine_gpu.router ROUTER.toml
"""

from __future__ import annotations

import sys
from pathlib import Path

from helix_mq.process import run
from helix_mq.settings import load as load_settings
from router.main import serve
from router.settings import RouterSettings


def main() -> None:
    settings = load_settings(RouterSettings, Path(sys.argv[1]), {})
    settings.start_logging()
    run(lambda stop: serve(settings, stop))


if __name__ == "__main__":
    main()
