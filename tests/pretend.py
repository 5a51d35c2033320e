"""What tests of many processes pretend to have."""

import torch


class Rank:
    """What `generate` needs of an accelerator: one of several processes, as `accelerate launch` would make it."""

    device = torch.device("cpu")

    def __init__(self, rank: int, world: int = 2) -> None:
        self.process_index, self.num_processes = rank, world

    def wait_for_everyone(self) -> None: ...
