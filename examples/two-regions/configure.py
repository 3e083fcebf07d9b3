"""Keys and settings files of the two-region cluster, written into a folder of its own.

Does in one process what an operator would do by hand on each machine:

    helix-mq keys new east-1                              # on the node's machine
    helix-mq keys allow east-1 PUBLIC-KEY                 # on the router's
"""

from __future__ import annotations

import argparse
from pathlib import Path

from helix_mq import keys
from helix_mq.models.config import ModelConfig
from helix_mq.models.resolve import resolve_model

CONTROL_PORT, CLIENTS_PORT, DATA_PORT, NODE_PORT = 7101, 7100, 7102, 7110
"""Fixed, since nothing else lives in these namespaces."""


def slices_of(num_layers: int, nodes: list[str]) -> dict[str, tuple[int, int]]:
    """Equal shares in order, so that a request crosses the wire once in each direction. One layer
    more on either side, where there are plenty: requests may then change nodes elsewhere."""
    count = len(nodes)
    more = 1 if num_layers >= 4 * count else 0
    return {
        name: (
            max(0, i * num_layers // count - more),
            min(num_layers, (i + 1) * num_layers // count + more),
        )
        for i, name in enumerate(nodes)
    }


def write(folder: Path, model: Path, east: str, west: str, nodes_per_region: int) -> None:
    at = {f"east-{i + 1}": east for i in range(nodes_per_region)}
    at |= {f"west-{i + 1}": west for i in range(nodes_per_region)}
    model = resolve_model(model)
    slices = slices_of(ModelConfig.from_folder(model).num_layers, list(at))
    key_folder, allow = folder / "keys", folder / "keys/allow.toml"
    for name in ("router", "client", *at):
        pair = keys.KeyPair.new()
        keys.save_key(key_folder, name, pair)
        if name != "router":
            keys.allow_key(allow, name, pair.public)
    router_public = keys.load_public_key(key_folder / "router.pub")
    placement = "\n".join(f'{name} = "{first}:{end}"' for name, (first, end) in slices.items())
    (folder / "router.toml").write_text(
        f'model = "{model}"\n'
        'model_name = "two-regions"\n'
        f'clients = "tcp://{east}:{CLIENTS_PORT}"\n'
        f'control = "tcp://{east}:{CONTROL_PORT}"\n'
        f'data = "tcp://{east}:{DATA_PORT}"\n'
        # HTTP is for this region's own machines; see docs/security.md before it leaves them.
        '[http]\nhost = "127.0.0.1"\nport = 8000\n'
        f"[placement.nodes]\n{placement}\n"
        f'[security]\nkey_file = "{key_folder}/router.key"\nallow_file = "{allow}"\n'
    )
    for i, (name, address) in enumerate(at.items()):
        (folder / f"{name}.toml").write_text(
            f'name = "{name}"\n'
            f'model = "{model}"\n'
            f'router = "tcp://{east}:{CONTROL_PORT}"\n'
            f'listen = "tcp://{address}:{NODE_PORT + i}"\n'
            'memory = "1GiB"\ndtype = "float32"\nthreads = 1\ndevice = "cpu"\n'
            "[measure]\nat_start = false\n"
            f'[security]\nkey_file = "{key_folder}/{name}.key"\n'
            f'router_public_key = "{router_public}"\n'
        )


def main() -> None:
    parser = argparse.ArgumentParser(description="Keys and settings of the two-region cluster.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--east", required=True, help="address of the first region's host")
    parser.add_argument("--west", required=True)
    parser.add_argument("--nodes-per-region", type=int, default=2)
    given = parser.parse_args()
    write(given.folder, given.model, given.east, given.west, given.nodes_per_region)


if __name__ == "__main__":
    main()
