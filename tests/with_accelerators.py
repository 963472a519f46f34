"""The command line on a machine that claims to have two accelerators: diffusers 0.42 divides by their number.

torchrun --nproc-per-node 2 tests/with_accelerators.py run ...
"""

import sys

import torch

from cachedit_cli.cli import main

if __name__ == "__main__":
    torch.accelerator.device_count = lambda: 2
    sys.exit(main())
