"""Every error of the project, in one tree whose branches say whose fault it is.

    HelixError
    ├── CallerError            what the caller asked for cannot be done as asked (HTTP 4xx)
    │   ├── InvalidRequest     a request's field is out of range; names `param`
    │   ├── ContextExceeded    prompt (plus output) does not fit the model's context
    │   ├── UnknownModel       no such model here
    │   ├── Unauthorized       no key, or a wrong one
    │   ├── ConfigError        a settings file, variable or flag is wrong; names the field
    │   └── ModelFormatError   a model folder or file is not what it should be
    ├── PeerError              what came from the other end of a socket is unusable
    │   ├── FrameError         a multipart message breaks the wire format
    │   ├── StaleFrame         a frame of an older epoch or attempt
    │   └── ConnectionLost     the peer went away
    ├── CapacityError          nothing is wrong, there is no room now (HTTP 429/503, Retry-After)
    │   ├── QueueFull          a bounded queue is full, or the caller's share of it
    │   │   └── ClusterFull    too much waits for the cluster, whoever sent it
    │   ├── NotServing         no live nodes cover the model; names the missing layers
    │   ├── DeadlineExceeded   the request's own deadline passed
    │   ├── KvExhausted        a node has no free KV page
    │   ├── NoRoom             a slice does not fit beside those a node holds
    │   └── JournalUnavailable the router cannot write down what it would accept
    └── LocalError             our own fault, or this machine's

Each class has a stable `code` for programs and a sentence for people. Foreign exceptions are
translated where they enter, never passed on.
"""

from __future__ import annotations

from typing import ClassVar


class HelixError(Exception):
    """Base of all errors of the project; `code` is stable, the text is for people."""

    code: ClassVar[str] = "helix_error"
    http_status: ClassVar[int] = 500

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param

    def __str__(self) -> str:
        return self.message


class CallerError(HelixError):
    code = "invalid_request"
    http_status = 400


class InvalidRequest(CallerError):
    """A field of a request is out of range; `param` names it."""


class ContextExceeded(CallerError):
    code = "context_length_exceeded"


class UnknownModel(CallerError):
    code = "model_not_found"
    http_status = 404


class Unauthorized(CallerError):
    code = "invalid_api_key"
    http_status = 401


class ConfigError(CallerError):
    code = "invalid_config"


class ModelFormatError(CallerError):
    code = "invalid_model"


class PeerError(HelixError):
    code = "peer_error"
    http_status = 502


class FrameError(PeerError):
    """A multipart message breaks the wire format; `reason` is short enough to count by."""

    code = "bad_frame"

    def __init__(self, message: str, *, reason: str = "malformed") -> None:
        super().__init__(message)
        self.reason = reason


class StaleFrame(PeerError):
    code = "stale_frame"


class ConnectionLost(PeerError):
    code = "connection_lost"


class CapacityError(HelixError):
    """No room now; `retry_after_s` is when trying again may help, where that is known."""

    code = "overloaded"
    http_status = 503

    def __init__(
        self, message: str, *, param: str | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message, param=param)
        self.retry_after_s = retry_after_s


class QueueFull(CapacityError):
    code = "queue_full"
    http_status = 429


class ClusterFull(QueueFull):
    """Not the caller's doing: all of the cluster's time is taken for longer than it may wait."""

    code = "cluster_full"
    http_status = 503


class NotServing(CapacityError):
    code = "not_serving"


class DeadlineExceeded(CapacityError):
    code = "deadline_exceeded"
    http_status = 504


class KvExhausted(CapacityError):
    code = "kv_exhausted"


class NoRoom(CapacityError):
    code = "no_room"


class JournalUnavailable(CapacityError):
    code = "journal_unavailable"


class LocalError(HelixError):
    code = "internal_error"


class DeviceLost(LocalError):
    """The device answers nothing any more, whatever it is asked, until its process starts anew."""

    code = "device_lost"
