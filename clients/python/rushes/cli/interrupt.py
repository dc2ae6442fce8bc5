"""Ctrl-C: the first asks to stop in good order, the second kills."""

import asyncio
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupt:
    """What the first stop signal does: it cancels the current task, until something better is known."""

    def __init__(self) -> None:
        task = asyncio.current_task()
        self._action: Callable[[], object] = task.cancel if task else lambda: None
        self._cancel = self._action
        self.asked = False

    def fire(self) -> None:
        """The signal came."""
        self.asked = True
        self._action()

    @contextmanager
    def replaced(self, action: Callable[[], object]) -> Iterator[None]:
        """For the block, the signal does this instead."""
        self._action = action
        try:
            yield
        finally:
            self._action = self._cancel


@contextmanager
def interruptible() -> Iterator[Interrupt]:
    """Handle stop signals for the block. A second one has the system's own effect: it ends the process at once."""
    loop = asyncio.get_running_loop()
    interrupt = Interrupt()

    def first() -> None:
        for number in STOP_SIGNALS:
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)
        interrupt.fire()

    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, first)
    try:
        yield interrupt
    finally:
        for number in STOP_SIGNALS:
            loop.remove_signal_handler(number)
