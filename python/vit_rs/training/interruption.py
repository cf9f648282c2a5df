"""SIGINT and SIGTERM (Ctrl-C, a cluster's pre-emption): finish the step or the batch of a test, save, then stop."""

from __future__ import annotations

import signal
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import FrameType, TracebackType

    from typing_extensions import Self

__all__ = ["Interrupted", "SignalGuard"]


class Interrupted(KeyboardInterrupt):
    """A run was stopped by a signal. The exit status is 128 + the signal's number.

    Attributes:
        signum: the signal.
    """

    def __init__(self, signum: int, message: str = "") -> None:
        super().__init__(message or signal.Signals(signum).name)
        self.signum = signum


class SignalGuard:
    """Turn the first SIGINT or SIGTERM into `Interrupted`; a context manager.

    While `deferred` is true the signal is only noted in `pending`, and the training loop asks for it after
    each step; elsewhere `Interrupted` is raised on the spot. A second signal acts as if there were no guard:
    it ends the process at once. Outside of the main thread, where Python does not let handlers be set, the
    guard does nothing.

    Args:
        supervised: whether a launcher started this process. A cluster signals both, and the launcher passes on what it
            gets: one SIGTERM comes twice. So a second one is ignored here; SIGINT still ends the process at once, and
            the launcher itself, SIGKILL sent, one that does not end within half a minute.
    """

    _SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self, *, supervised: bool = False) -> None:
        self._supervised = supervised
        self.pending: int | None = None
        self.deferred = False
        self._previous: dict[int, object] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for signum in self._SIGNALS:
                self._previous[signum] = signal.signal(signum, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _handle(self, signum: int, _frame: FrameType | None) -> None:
        if self.pending is not None:
            return  # SIGTERM again, from the launcher
        self._restore(but=signal.SIGTERM if self._supervised else None)
        self.pending = signum
        if not self.deferred:
            raise Interrupted(signum)

    def _restore(self, *, but: int | None = None) -> None:
        for signum in [signum for signum in self._previous if signum != but]:
            signal.signal(signum, self._previous.pop(signum))  # type: ignore[arg-type]  # what signal.signal returned
