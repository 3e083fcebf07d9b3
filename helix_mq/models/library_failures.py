"""Failures of the `tokenizers` library, which has no exception classes of its own, in words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from helix_mq.errors import HelixError, ModelFormatError


@contextmanager
def in_words(complaint: str) -> Iterator[None]:
    """ModelFormatError, `complaint` with the library's reason, for whatever the library raises.

    It raises plain Exception for what is wrong in its input and, where its own code fails,
    PanicException, which is not an Exception.
    """
    try:
        yield
    except HelixError:
        raise
    except BaseException as e:
        if not isinstance(e, Exception) and type(e).__name__ != "PanicException":
            raise
        reason = (str(e).strip() or type(e).__name__).splitlines()[0][:300]
        raise ModelFormatError(f"{complaint}: {reason}") from None
