"""The text of the unit files. Pure.

deploy/systemd/ holds these very texts for the program in its usual place; a test compares them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from helix_mq.errors import ConfigError

Kind = Literal["router", "node"]

CONFIG_FOLDER = "/etc/helix_mq"
UNIT_FOLDER = "/etc/systemd/system"
SYSUSERS_FOLDER = "/etc/sysusers.d"
DEFAULT_PROGRAM = "/opt/helix_mq/bin/helix-mq"


@dataclass(frozen=True, slots=True)
class Service:
    """Names of one service. `name` is the node's; a machine has one router."""

    kind: Kind
    name: str = ""

    @property
    def file(self) -> str:
        """The unit file: one for all nodes of a machine."""
        return "helix-mq-router.service" if self.kind == "router" else "helix-mq-node@.service"

    @property
    def unit(self) -> str:
        return self.file if self.kind == "router" else f"helix-mq-node@{self.name}.service"

    @property
    def instance(self) -> str:
        """In names of files and folders."""
        return "router" if self.kind == "router" else f"node-{self.name}"

    @property
    def user(self) -> str:
        return f"helix-mq-{self.kind}"

    @property
    def config(self) -> str:
        return f"{CONFIG_FOLDER}/{self.instance}.toml"

    @property
    def key(self) -> str:
        """What the service gets as `$CREDENTIALS_DIRECTORY/key`."""
        return f"{CONFIG_FOLDER}/{self.instance}.key"

    @property
    def state(self) -> str:
        return f"/var/lib/helix_mq/{self.instance}"

    @property
    def cache(self) -> str:
        return f"/var/cache/helix_mq/{self.instance}"


def unit_text(kind: Kind, program: str = DEFAULT_PROGRAM) -> str:
    """The unit file of `kind`, starting `program`. ConfigError where systemd could not name it."""
    if not program.startswith("/") or any(c in program for c in " \t\n\r\"'\\%$;{}|"):
        raise ConfigError(
            f"{program!r}: a service needs an absolute path without spaces, quotes or % : install "
            f"helix_mq elsewhere, e.g. so that {DEFAULT_PROGRAM} is it"
        )
    if kind == "router":
        return _ROUTER.replace("@PROGRAM@", program).replace("@HARDENING@", _HARDENING)
    return _NODE.replace("@PROGRAM@", program).replace("@HARDENING@", _HARDENING)


def sysusers_text(kind: Kind) -> str:
    """A file for systemd-sysusers: the user the service runs as, without shell or home."""
    user = Service(kind).user
    return f'# Made by `helix-mq install-service`.\nu {user} - "helix_mq {kind}" / -\n'


_ROUTER = """\
# The router of a helix_mq cluster. See docs/services.md.
[Unit]
Description=helix_mq router
Wants=network-online.target
After=network-online.target
# Whatever keeps it from starting (an address that is not up yet, a disk), it tries again.
StartLimitIntervalSec=0

[Service]
Type=notify
NotifyAccess=main
ExecStart=@PROGRAM@ router --config /etc/helix_mq/router.toml
User=helix-mq-router
Group=helix-mq-router

# Its own key, for `key_file = "$CREDENTIALS_DIRECTORY/key"`. The file belongs to root alone; a
# router on loopback has none, and does not read the text that stands here instead.
LoadCredential=key:/etc/helix_mq/router.key
SetCredential=key:no_key_at="/etc/helix_mq/router.key"

# Accepted requests are in the journal, so a restart loses none.
Restart=on-failure
RestartSec=1
WatchdogSec=30
# A GGUF model is converted at the first start.
TimeoutStartSec=15min
TimeoutStopSec=60

# Clients and nodes have a connection each.
LimitNOFILE=65536
LimitCORE=0
TasksMax=1024
# Its memory is bounded by its settings; this is for faults. On a machine that it shares with a
# node, it is the node that has to go.
MemoryHigh=60%
MemoryMax=75%
OOMScoreAdjust=-500

@HARDENING@
# No device, no memory both writable and executable: the router compiles nothing.
PrivateDevices=yes
DevicePolicy=closed
MemoryDenyWriteExecute=yes
PrivateUsers=yes
ProcSubset=pid
StateDirectory=helix_mq/router
StateDirectoryMode=0700
CacheDirectory=helix_mq/router
CacheDirectoryMode=0700
Environment=HELIX_MQ_CACHE=%C/helix_mq/router
WorkingDirectory=%S/helix_mq/router

[Install]
WantedBy=multi-user.target
"""

_NODE = """\
# A node of a helix_mq cluster; %i is its name. See docs/services.md.
[Unit]
Description=helix_mq node %i
Wants=network-online.target
# The driver's devices must be there: inside the service nothing can make them.
# A router on the same machine stops after it, so that it can say goodbye.
After=network-online.target nvidia-persistenced.service helix-mq-router.service
# A router that does not let it in today may do so tomorrow: it tries again.
StartLimitIntervalSec=0

[Service]
Type=notify
NotifyAccess=main
ExecStart=@PROGRAM@ node --config /etc/helix_mq/node-%i.toml --name %i
User=helix-mq-node
Group=helix-mq-node

# Its own key, for `key_file = "$CREDENTIALS_DIRECTORY/key"`. The file belongs to root alone; a
# node on loopback has none, and does not read the text that stands here instead.
LoadCredential=key:/etc/helix_mq/node-%i.key
SetCredential=key:no_key_at="/etc/helix_mq/node-NAME.key"

# A node that was drained ends well and stays away.
Restart=on-failure
RestartSec=5
# Without a sign of life from the event loop, or with a device that hangs (`stuck_after_s`).
WatchdogSec=60
# A GGUF model is converted at the first start; then the node measures itself. It is ready before it
# has found its router.
TimeoutStartSec=30min
# When it is told to stop it asks for as long as `drain_s` takes.
TimeoutStopSec=60

LimitNOFILE=65536
# Host memory that the GPU reads is locked.
LimitMEMLOCK=infinity
LimitCORE=0
TasksMax=4096
# A node that swaps holds up everyone's requests; one that is killed is replaced.
MemoryMax=90%
MemorySwapMax=0
OOMScoreAdjust=200

@HARDENING@
# The GPU. A group that has no devices here is passed over; for others than NVIDIA's add a line by
# `systemctl edit`, e.g. DeviceAllow=char-kfd rw and DeviceAllow=char-drm rw.
DevicePolicy=closed
DeviceAllow=char-nvidia* rw
# No MemoryDenyWriteExecute: torch, Triton and the CUDA driver compile kernels while they run.
StateDirectory=helix_mq/node-%i
StateDirectoryMode=0700
CacheDirectory=helix_mq/node-%i
CacheDirectoryMode=0700
# Converted models, measured speeds and compiled kernels survive a restart.
Environment=HELIX_MQ_CACHE=%C/helix_mq/node-%i
Environment=XDG_CACHE_HOME=%C/helix_mq/node-%i
Environment=TRITON_CACHE_DIR=%C/helix_mq/node-%i/triton
Environment=TORCHINDUCTOR_CACHE_DIR=%C/helix_mq/node-%i/inductor
Environment=CUDA_CACHE_PATH=%C/helix_mq/node-%i/cuda
WorkingDirectory=%S/helix_mq/node-%i

[Install]
WantedBy=multi-user.target
"""

_HARDENING = """\
# What it may see and change: its own two folders, and nothing in users' homes, so models belong
# elsewhere, e.g. below /srv.
ProtectSystem=strict
ProtectHome=yes
PrivateTmp=yes
UMask=0077
RemoveIPC=yes
ProtectProc=invisible
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
NoNewPrivileges=yes
CapabilityBoundingSet=
AmbientCapabilities=
LockPersonality=yes
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
# Netlink: ZeroMQ lists the machine's interfaces when it binds, and ends the process if it cannot.
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@privileged
SystemCallErrorNumber=EPERM"""
