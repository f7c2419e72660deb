"""Several processes, one for each device: who they are, how they meet, and what they tell each other.

PyTorch is imported when processes meet, not before: one process never pays for it.
"""

from fullquant.distributed.environment import Meeting, from_environment
from fullquant.distributed.group import ProcessEnded, joined
from fullquant.distributed.world import ALONE, World

__all__ = ["ALONE", "Meeting", "ProcessEnded", "World", "from_environment", "joined"]
