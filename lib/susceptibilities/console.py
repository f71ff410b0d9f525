"""How scripts talk to the person at the terminal: errors in one line, progress in plain lines."""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Callable

# What a user can cause and mend, beside the exceptions that this package defines.
_EXPECTED = (FileNotFoundError, PermissionError, ValueError)


def run(main: Callable[[], None]) -> None:
    """Call a script's ``main``; a user's mistake ends it with its message and exit code 1.

    Anything else is a defect and keeps its traceback; with SUSCEPTIBILITIES_TRACEBACK set,
    so does everything.
    """
    try:
        main()
    except Exception as error:
        if os.environ.get("SUSCEPTIBILITIES_TRACEBACK"):
            raise
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            sys.exit(f"error: no space left on the disk ({error.filename or 'while writing'})")
        ours = type(error).__module__.startswith(f"{__package__}.")
        if not (ours or isinstance(error, _EXPECTED)):
            raise
        sys.exit(f"error: {error}")


class Progress:
    """Lines such as ``[  12 s] speeches: 2400 contexts``, flushed at once."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    def __call__(self, message: str) -> None:
        print(f"[{time.monotonic() - self._start:5.0f} s] {message}", file=sys.stderr, flush=True)
