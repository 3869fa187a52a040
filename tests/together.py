"""Ranks for tests: forked from this process, so that nothing is imported again."""

import json
import multiprocessing
import os
import socket
import sys
import traceback

from calotype import heartbeat, ranks


def be_impatient(patch):
    """Lost ranks are noticed, and left, after seconds."""
    patch.setattr(ranks, "PATIENCE", 2.0)
    patch.setattr(ranks, "FAREWELL", 0.5)
    patch.setattr(heartbeat, "SIGN_SECONDS", 0.2)


class Together:
    """Processes with the variables that torchrun sets; each does `work`, which returns JSON."""

    def __init__(self, count, work, folder):
        folder.mkdir(exist_ok=True)
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        fork = multiprocessing.get_context("fork")
        self.folder, self.count = folder, count
        self.ranks = [fork.Process(target=run, args=(index, count, port, work, folder)) for index in range(count)]
        for rank in self.ranks:
            rank.start()

    def codes(self, seconds=120):
        """The exit codes; None of those that have not ended by then."""
        for rank in self.ranks:
            rank.join(seconds)
        codes = [rank.exitcode for rank in self.ranks]
        for rank in self.ranks:
            rank.kill()
        return codes

    def error(self, index):
        path = self.folder / f"rank-{index}.err"
        return path.read_text() if path.exists() else ""

    def results(self):
        """Of ranks that have all ended without an error."""
        assert self.codes() == [0] * self.count, "\n".join(map(self.error, range(self.count)))
        return [json.loads((self.folder / f"rank-{index}.json").read_text()) for index in range(self.count)]


def run(index, count, port, work, folder):
    os.environ |= {
        "RANK": str(index), "LOCAL_RANK": str(index), "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    try:
        (folder / f"rank-{index}.json").write_text(json.dumps(work()))
    except BaseException as error:
        (folder / f"rank-{index}.err").write_text(traceback.format_exc())
        sys.exit(error.code if isinstance(error, SystemExit) else 1)
