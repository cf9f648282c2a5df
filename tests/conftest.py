"""Settings that all tests share."""

import torch

# The tests' tensors are tiny: a second thread costs more than it does, most of all on a busy machine. Tests of threads
# say their numbers themselves.
torch.set_num_threads(1)
