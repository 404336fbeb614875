"""Signals that ask a run to stop."""

import logging
import signal
from types import FrameType

log = logging.getLogger(__name__)


class StopOnSignal:
    """While entered, SIGTERM and the first Ctrl-C ask the run to save and stop.

    What handles a signal does no more than note it: it may come in the middle of anything, and a
    line that is logged while another is being written is an error.
    """

    def __init__(self) -> None:
        """Nothing is asked yet."""
        self._number: int | None = None
        self._said = False

    def __enter__(self) -> "StopOnSignal":
        self._former = {
            number: signal.signal(number, self._ask) for number in (signal.SIGTERM, signal.SIGINT)
        }
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def is_set(self) -> bool:
        """Whether it was asked to stop, and says so once."""
        if self._number is None:
            return False
        if not self._said:
            log.info("%s: saving, then stopping", signal.Signals(self._number).name)
            self._said = True
        return True

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._number = number
        signal.signal(signal.SIGINT, signal.default_int_handler)
