"""Settings of the whole test run."""

import torch

# The models here are tiny: a second thread would cost more in waiting than it brings, above all on a busy machine.
torch.set_num_threads(1)
