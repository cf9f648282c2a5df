"""Settings that all tests share."""

import signal

import torch

# The tests' tensors are tiny: a second thread costs more than it does, most of all on a busy machine. Tests of threads
# say their numbers themselves.
torch.set_num_threads(1)

# A shell has its background jobs ignore Ctrl-C, and with them all processes that a test would start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
