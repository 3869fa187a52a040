"""What can be asked of Calotype. Whoever talks to people calls these functions, and they talk through a `Voice`."""

from calotype.commands.comparing import compare
from calotype.commands.reading import write_data
from calotype.commands.sampling import enlarge, read_prompts, sample
from calotype.commands.talk import Progress, Voice
from calotype.commands.training import Wish, plan, resume, train

__all__ = [
    "Progress",
    "Voice",
    "Wish",
    "compare",
    "enlarge",
    "plan",
    "read_prompts",
    "resume",
    "sample",
    "train",
    "write_data",
]
