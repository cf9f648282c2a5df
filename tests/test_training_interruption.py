"""What a first and a second signal do to a run, alone and under a launcher that passes signals on."""

from __future__ import annotations

import signal

import pytest

from vit_rs.training.interruption import Interrupted, SignalGuard

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@pytest.fixture(autouse=True)
def seen():
    """Handlers that note their signals."""
    noted = []
    before = {signum: signal.signal(signum, lambda number, _frame: noted.append(number)) for signum in SIGNALS}
    yield noted
    for signum, handler in before.items():
        signal.signal(signum, handler)


@pytest.mark.parametrize("signum", SIGNALS)
def test_the_first_is_deferred_or_raised_at_once(seen, signum):
    with SignalGuard() as guard:
        guard.deferred = True
        signal.raise_signal(signum)
        assert guard.pending == signum
    with SignalGuard(), pytest.raises(Interrupted) as stop:
        signal.raise_signal(signum)
    assert stop.value.signum == signum
    assert seen == []


@pytest.mark.parametrize("first", SIGNALS)
@pytest.mark.parametrize("second", SIGNALS)
def test_a_second_one_acts_as_without_a_guard(seen, first, second):
    with SignalGuard() as guard:
        guard.deferred = True
        signal.raise_signal(first)
        signal.raise_signal(second)
    assert (guard.pending, seen) == (first, [second])


@pytest.mark.parametrize("first", SIGNALS)
def test_a_launcher_s_sigterm_again_is_ignored(seen, first):
    with SignalGuard(supervised=True) as guard:
        guard.deferred = True
        signal.raise_signal(first)
        for _ in range(3):
            signal.raise_signal(signal.SIGTERM)
        assert (guard.pending, seen) == (first, [])
        signal.raise_signal(signal.SIGINT)  # Ctrl-C for the second time
        assert seen == [signal.SIGINT]
    signal.raise_signal(signal.SIGTERM)
    assert seen == [signal.SIGINT, signal.SIGTERM]
