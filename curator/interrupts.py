"""Ctrl-C that is not lost.

Python raises KeyboardInterrupt at whatever line the main thread has reached. In a destructor, or in a callback of a
weak reference (every import ends in one) or out of C, it can go nowhere: Python prints "Exception ignored" and goes
on, and so would the run. A library's bare `except:` does the same without a word. So the handler also notes that a
signal came: one that Python says it ignored is sent again, and a run looks at the note between two steps.

Invariant: a run that was interrupted gets no further than its next `check`, or than the end of what is `postponed`.
"""

import _thread
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

_AGAIN_S = 0.05
"""By then the main thread has left the destructor in which the exception was lost."""
_SAME_S = 0.5
"""Two signals of a kind that are no further apart are one, which a launcher passed on."""

_received: list[int] = []
"""Signals that came inside `heeded`; a list, as appending to one takes no lock that the main thread may hold."""


@contextmanager
def heeded(*numbers: signal.Signals) -> Iterator[None]:
    """Let no Ctrl-C be lost inside, nor any of these signals, which mean the same there.

    SIGINT stays as it is where it is ignored (in a shell's background) or the caller has a handler of its own. In
    another thread than the main one this does nothing, as Python hears of signals in the main one alone.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        numbers = (signal.SIGINT, *numbers)
    hook = sys.unraisablehook

    def send_again(ignored: "sys.UnraisableHookArgs") -> None:
        if _received and issubclass(ignored.exc_type, KeyboardInterrupt):
            _thread.start_new_thread(_send_again, (_received[-1],))  # threading's takes locks: this may be anywhere
        else:
            hook(ignored)

    before = {number: signal.getsignal(number) for number in numbers}
    try:
        sys.unraisablehook = send_again
        for number in numbers:
            signal.signal(number, _interrupt)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        sys.unraisablehook = hook
        _received.clear()


@contextmanager
def postponed(*numbers: signal.Signals) -> Iterator[Callable[[], bool]]:
    """Only note a Ctrl-C inside, so that work can be left at a good moment, and raise it at the end.

    The same goes for what `heeded` lets mean the same, and for these signals where nobody handles them. The second of
    a kind is raised at once, unless it comes with the first: torchrun passes on what Slurm sent to every process.
    In another thread than the main one this does nothing.

    Yields:
        Whether one has come.
    """
    came: dict[int, float] = {}

    def note(number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if now - came.setdefault(number, now) <= _SAME_S:
            return
        if before.get(signal.Signals(number)) is _interrupt:
            _interrupt(number, frame)
        raise KeyboardInterrupt  # nobody is to find a note of it later: no `heeded` is around to forget it

    def means_the_same(number: signal.Signals) -> bool:
        handler = signal.getsignal(number)
        return handler in (_interrupt, signal.default_int_handler) or (handler == signal.SIG_DFL and number in numbers)

    main_thread = threading.current_thread() is threading.main_thread()
    taken = [number for number in signal.Signals if means_the_same(number)] if main_thread else []
    before = {number: signal.signal(number, note) for number in taken}
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if came:
        raise KeyboardInterrupt


def check() -> None:
    """Raise KeyboardInterrupt if one has come and the run goes on all the same."""
    if _received:
        raise KeyboardInterrupt


def take() -> None:
    """Forget what came: the caller has caught it, and what it does now is not to be stopped but by another one."""
    _received.clear()


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    _received.append(number)
    raise KeyboardInterrupt


def _send_again(number: int) -> None:
    main_thread = threading.main_thread().ident
    time.sleep(_AGAIN_S)
    if _received and main_thread is not None and signal.getsignal(number) is _interrupt:
        signal.pthread_kill(main_thread, number)
