"""Every test runs on one thread, so that small matrices are not slowed by a pool of them."""

import torch

torch.set_num_threads(1)
