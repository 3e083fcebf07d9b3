"""What the bench and its load processes say to each other, as lines of JSON. No behaviour.

To a load process: a Job, then Go, later perhaps Stop. From it: Ready, then Progress and Ended over
and over, at last Spent. Times are seconds on the machine's monotonic clock, which all processes of
a machine share; those of outcomes count from the start that Go names.
"""

from __future__ import annotations

import msgspec

SERVED, REFUSED, LATE, BROKEN, WRONG = "served", "refused", "late", "broken", "wrong"
"""What became of a request. `refused`: 429 or 503. `late`: not ended at its deadline. `wrong`:
ended as if all were well, but with other than the tokens asked for. `broken`: anything else."""
KINDS = (SERVED, REFUSED, LATE, BROKEN, WRONG)

MAX_LINE_BYTES = 16 << 20


class HttpTarget(msgspec.Struct, frozen=True, tag="http"):
    """`url` up to and with `/v1`. `key_env` names the environment variable that holds the API key,
    so that the key itself is in no file and no list of processes. `extra`: further fields of each
    request, as JSON."""

    url: str
    model: str
    chat: bool = False
    key_env: str = ""
    extra: dict[str, msgspec.Raw] = {}


class SdkTarget(msgspec.Struct, frozen=True, tag="sdk"):
    """A router's `clients` endpoint. Files of keys: both or neither."""

    endpoint: str
    model: str = ""
    chat: bool = False
    key: str = ""
    server_key: str = ""
    insecure: bool = False


Target = HttpTarget | SdkTarget


class Closed(msgspec.Struct, frozen=True, tag="closed"):
    """Always `at_once` requests under way: the next is due when one before it ends."""

    at_once: int


class Rate(msgspec.Struct, frozen=True, tag="rate"):
    """Poisson arrivals, or as the workload's `arrivals=` says, whatever becomes of those before."""

    per_s: float


class Ramp(msgspec.Struct, frozen=True, tag="ramp"):
    """Poisson arrivals whose rate goes from one to the other in `seconds`, and stays there."""

    from_per_s: float
    to_per_s: float
    seconds: float


class Own(msgspec.Struct, frozen=True, tag="own"):
    """When the workload says: a trace's own times."""


Arrivals = Closed | Rate | Ramp | Own


class Job(msgspec.Struct, frozen=True):
    """The whole load and this process's part in it: of `parts`, the requests whose number is `part`
    modulo `parts`. `workload` is a specification as in docs/workloads.md. Ends after `requests`, or
    at `seconds` (what is under way then may end), whichever comes first; None is no such limit.
    """

    target: Target
    workload: str
    arrivals: Arrivals
    seed: int
    requests: int | None
    seconds: float | None
    warmup: int
    deadline_s: float
    exact: bool = True
    """Every answer has as many tokens as asked for; the end-of-text token does not end it."""
    temperature: float = 0.0
    tokenizer: str = ""
    part: int = 0
    parts: int = 1


class Go(msgspec.Struct, frozen=True, tag="go"):
    at_s: float


class Stop(msgspec.Struct, frozen=True, tag="stop"):
    """Send no more, leave what is under way."""


class Outcome(msgspec.Struct, frozen=True, array_like=True):
    """One request. `due_s`: when it was to be sent. `first_s`, `last_s`: the first and last event
    with output. `events`: how many had output. Tokens are the server's count; 0 where it gave none.
    """

    number: int
    kind: str
    reason: str
    """Of what did not end well: the status and code, or what broke."""
    asked_tokens: int
    prompt_tokens: int
    tokens: int
    events: int
    due_s: float
    sent_s: float
    first_s: float | None
    last_s: float | None
    ended_s: float


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """The warm-up is over. `failed` of `warmed` requests did not end well, one `because`."""

    warmed: int
    failed: int
    because: str = ""


class Progress(msgspec.Struct, frozen=True, tag="progress"):
    """Since the start. `events` with output, those of open requests included."""

    sent: int
    events: int
    late_most_s: float


class Ended(msgspec.Struct, frozen=True, tag="ended"):
    outcomes: tuple[Outcome, ...]


class Counts(msgspec.Struct, frozen=True):
    """A histogram on the wire: how many by bucket, and what is exact of it."""

    buckets: dict[int, int]
    count: int
    total: float
    squares: float
    smallest: float
    largest: float


class Spent(msgspec.Struct, frozen=True, tag="spent"):
    """The last word of a load process. `gaps`: between events of one request, of those served.
    `tokens_by_s`: in each second since the start, of those served. `lag`: how much later than asked
    the event loop came back, from a timer that does nothing else. `cpu_s` in `wall_s`: from the
    start to the last end."""

    gaps: Counts
    tokens_by_s: tuple[float, ...]
    lag: Counts
    cpu_s: float
    wall_s: float
    left: int
    """Requests that were under way when it was stopped; they are in no figure."""


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """The process ends for this reason. `caller`: what it was asked for cannot be done."""

    message: str
    caller: bool


Said = Ready | Progress | Ended | Spent | Failed
Told = Go | Stop
