"""`calotype serve`, and `train --serve`: the page beside a training."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from calotype.cli.console import Console
from calotype.cli.options import ServeOptions
from calotype.types import UserError

NEEDED = ("starlette", "uvicorn", "python_multipart")
LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "::1")


def serve(options: ServeOptions, console: Console) -> None:
    """Until Ctrl-C. Raises `UserError` where the port is taken, or the extra is not installed."""
    require_extra()
    from calotype.serve.safety import gate_for
    from calotype.serve.server import application, server

    if options.folder.exists() and not options.folder.is_dir():
        raise UserError(f"{options.folder} is a file, expected the folder of runs")
    listening = listen(options.host, options.port)
    port = listening[0].getsockname()[1]
    gate = gate_for(options.host, port)
    place = f"{address_of(options.host)}:{port}/?token={gate.token}"
    if gate.own_name:
        console.say(f"open http://{gate.own_name}:{port}/?token={gate.token}")
        console.say(f"if the browser does not know this name (Safari), and for programs: http://{place}")
    else:
        console.say(
            f"warning: at {options.host} anyone on the network can reach this server, and nothing is encrypted; "
            f"whoever has the token can train and sample here. Safer: ssh -L {port}:127.0.0.1:{port} THIS-MACHINE"
        )
        console.say(f"open http://{place}")
    console.say("the token in this address is new at each start; Ctrl-C ends the server, but no training")
    app = application(options.folder.resolve(), gate, options.device)
    try:
        server(app, options.host, port).run(listening)
    finally:
        for each in listening:
            each.close()


def require_extra() -> None:
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise UserError(f'serve needs {", ".join(missing)}; install them with: pip install "calotype[ui]"')


def address_of(host: str) -> str:
    """A host as it stands in an address; of a server at all addresses, one of this machine."""
    if host in ("", "0.0.0.0", "::"):
        return socket.gethostname()
    return f"[{host}]" if ":" in host else host


def listen(host: str, port: int) -> list[socket.socket]:
    """Sockets at the address; for a loopback one, at that of IPv6, too. Raises `UserError`.

    Browsers take either for a name that ends with `.localhost`, and a stranger at the other one would get the token.
    """
    if host not in LOOPBACK_HOSTS:
        return [listen_at(host, port)]
    first = listen_at("127.0.0.1", port)
    try:
        return [first, listen_at("::1", first.getsockname()[1])] if has_ipv6() else [first]
    except UserError:
        first.close()
        if port:
            raise
        return listen(host, port)


def has_ipv6() -> bool:
    """Whether this machine has the loopback address of IPv6."""
    try:
        listen_at("::1", 0).close()
    except UserError:
        return False
    return True


def listen_at(host: str, port: int) -> socket.socket:
    """Raises `UserError`."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, UnicodeError) as error:
        code = getattr(error, "errno", None)
        reason = os.strerror(code) if isinstance(code, int) and code > 0 else error
        raise UserError(f"cannot listen at {host}, port {port}: {reason}; choose another with --port") from None


@contextmanager
def page_beside(folder: Path, device: str) -> Iterator[None]:
    """A server for the runs in `folder`, as a process of its own that ends with the block."""
    require_extra()
    command = [sys.executable, "-P", "-m", "calotype", "serve", str(folder), "--port", "0", "--device", device]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=os.name != "nt")
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()
