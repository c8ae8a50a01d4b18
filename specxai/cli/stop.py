"""Being stopped: drafts are removed, and one line says so."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["stoppable"]


class Stopped(BaseException):
    """A signal asked the process to end; no `except Exception` on the way may take it for an error."""


@contextmanager
def stoppable(name: str) -> Iterator[None]:
    """SIGTERM, SIGHUP and Ctrl-C inside end the block as an exception would, so that what it cleans up is cleaned up.

    Then one line is printed, and SystemExit with a shell's status for the signal (130 for Ctrl-C) raised.
    """

    def stop(number: int, frame) -> None:
        signal.signal(number, signal.SIG_IGN)  # a second one must not interrupt the cleaning
        raise Stopped(number)

    before = {}
    if threading.current_thread() is threading.main_thread():
        for kind in ("SIGTERM", "SIGHUP"):
            number = getattr(signal, kind, None)
            # What was ignored, as by nohup, stays so; a handler of the caller's own, too.
            if number is not None and signal.getsignal(number) == signal.SIG_DFL:
                before[number] = signal.signal(number, stop)
    try:
        yield
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        raise SystemExit(130) from None
    except Stopped as stopped:
        number = stopped.args[0]
        print(f"{name}: stopped by {signal.Signals(number).name}", file=sys.stderr)
        raise SystemExit(128 + number) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
