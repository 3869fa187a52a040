"""torchrun for `--ranks`: the last line is the reason why the job has ended, not a traceback."""

from __future__ import annotations

import signal
import sys

from torch.distributed import run
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from calotype.ranks import advice_after_loss


def launch(arguments: list[str]) -> None:
    """Ends with the exit code of the rank that failed first, and its reason; with 128 + number after a signal."""
    try:
        run.run(run.parse_args(arguments))
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        print(reason(rank, failure, command_in(arguments)), file=sys.stderr)
        sys.exit(failure.exitcode if failure.exitcode > 0 else 1)
    except SignalException as stopped:
        sys.exit(128 + stopped.sigval)


def command_in(arguments: list[str]) -> str:
    """The command of Calotype that the ranks work on."""
    return next((word for word in arguments[arguments.index("calotype") + 1 :] if not word.startswith("-")), "train")


def reason(rank: int, failure: ProcessFailure, command: str = "train") -> str:
    """What the rank has passed on; of one that a signal has killed, that."""
    if failure.exitcode >= 0 or failure.error_file_data.get("message") == failure.message:
        return failure.message
    return f"calotype: rank {rank} was killed by {signal.Signals(-failure.exitcode).name}; {advice_after_loss(command)}"


if __name__ == "__main__":
    launch(sys.argv[1:])
