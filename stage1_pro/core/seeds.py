"""One integer seed for everything random, and an independent generator for each purpose."""

import random

import numpy as np
import torch


def seed_of(*key: int) -> int:
    """An independent seed for each key, such as (seed, epoch, rank)."""
    return int(np.random.SeedSequence(key).generate_state(1)[0])


class isolated_seed:
    """Within the block all three random generators start from the key; outside nothing has happened."""

    def __init__(self, *key: int):
        self.seed = seed_of(*key)

    def __enter__(self) -> None:
        self.state = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
        random.seed(self.seed)
        np.random.seed(self.seed)  # noqa: NPY002 (transforms draw from it)
        torch.default_generator.manual_seed(self.seed)  # torch.manual_seed would reset the accelerators too

    def __exit__(self, *_: object) -> None:
        python, numpy, pytorch = self.state
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        torch.set_rng_state(pytorch)
