"""Processes of the tests without importing TensorFlow or torch anew: that takes 5 of a Keras process's 6 seconds.

A server imports the packages once. For each process that a test starts it forks, and the fork runs a script or a module
as a new interpreter would: its own arguments, environment, folder, standard streams, exit code and signals. Nothing
that it does reaches the next one. Where a test changes what an import looks at, such as KERAS_BACKEND, a real
interpreter is started instead.

The interpreter that the tests name is a small script, `CLIENT`. It asks the server and ends as the fork ends; signals
that it gets go on to the fork, and when it is killed, so is the fork.
"""

import contextlib
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from pathlib import Path

# -S and -E: without packages and the caller's variables it starts in a hundredth of a second.
CLIENT = """#!{python} -SE
import json, os, signal, socket, sys
# A test that changes these wants other packages; anything but a script or a module is for a real interpreter.
looked_at = {{name: os.environ.get(name) for name in {looked_at!r}}}
arguments = sys.argv[2:] if sys.argv[1:2] == ["-u"] else sys.argv[1:]
if looked_at != {values!r} or not arguments or not (arguments[0] == "-m" or arguments[0].endswith(".py")):
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
asked = {{"arguments": arguments, "environment": dict(os.environ), "folder": os.getcwd(), "executable": sys.argv[0]}}
socket.send_fds(server, [b" "], [0, 1, 2])
server.sendall(json.dumps(asked).encode() + b"\\n")
answers = server.makefile()
fork = int(answers.readline())
for each in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
    signal.signal(each, lambda number, _: os.kill(fork, number))
code = int(answers.readline())
if code < 0:
    signal.signal(-code, signal.SIG_DFL) if -code != signal.SIGKILL else None
    os.kill(os.getpid(), -code)
sys.exit(code)
"""
KERAS = ("h5py", "keras", "PIL.Image", "tensorflow", "tf_keras")
OURS = ("torch", "tests.quick_fits", "lightning_module.commands.lightning_cli.training")
"""What a server imports for Keras's processes, and for the command's."""
LOOKED_AT = {
    KERAS: ("KERAS_BACKEND", "TF_USE_LEGACY_KERAS", "TF_ENABLE_ONEDNN_OPTS", "PYTHONPATH", "PYTHONHOME", "HOME"),
    OURS: ("PYTHONHOME", "HOME"),
}


class Forks:
    """The server and the interpreter that asks it; starts when `executable` is first read.

    Args:
        modules: `KERAS` or `OURS`, which is imported; what an interpreter lacks is left out.
        environment: of the server: what a process gets in the tests.
        python: the interpreter that it is.
    """

    def __init__(
        self, modules: tuple[str, ...], environment: dict[str, str], python: Path | str = sys.executable
    ) -> None:
        self._modules = modules
        self._environment = environment
        self._python = str(python)
        self._folder: tempfile.TemporaryDirectory | None = None
        self._server: subprocess.Popen | None = None
        self._lock = threading.Lock()

    @property
    def executable(self) -> str:
        """Path of the interpreter, as `sys.executable` is one; threads may ask for it at once."""
        with self._lock:
            return self._started()

    def _started(self) -> str:
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="forks-")
            address, client = Path(self._folder.name, "s"), Path(self._folder.name, "python")
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(str(address))
                listener.listen(64)  # a client may ask while TensorFlow is imported
                self._server = subprocess.Popen(
                    [self._python, __file__, str(listener.fileno()), *self._modules],
                    env=self._environment, stdin=subprocess.PIPE, pass_fds=[listener.fileno()],
                )  # fmt: skip
            looked_at = LOOKED_AT[self._modules]
            values = {name: self._environment.get(name) for name in looked_at}
            client.write_text(
                CLIENT.format(python=self._python, looked_at=looked_at, values=values, address=str(address))
            )
            client.chmod(0o755)
        return str(Path(self._folder.name, "python"))

    def close(self) -> None:
        """End the server; the forks end by themselves."""
        if self._server is not None and self._folder is not None:
            self._server.communicate()  # closes its standard input, which ends it
            self._folder.cleanup()


def serve(listener: socket.socket) -> None:
    """Fork for each client, until the tests' process ends or closes the pipe."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that look after a fork
    while True:
        readable, _, _ = select.select([listener, sys.stdin], [], [])
        if sys.stdin in readable:
            return
        client, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            look_after(client)
            os._exit(0)
        client.close()


def look_after(client: socket.socket) -> None:
    """Run what a client asks for in a fork; tell it the exit code, or kill the fork when the client has gone."""
    _, streams, _, _ = socket.recv_fds(client, 1, 3)
    asked = json.loads(client.makefile().readline())
    fork = os.fork()
    if fork == 0:
        client.close()
        become(asked, streams)
    for stream in streams:
        os.close(stream)
    client.sendall(b"%d\n" % fork)
    ended = os.pidfd_open(fork)
    readable, _, _ = select.select([ended, client], [], [])
    if ended not in readable:
        os.kill(fork, signal.SIGKILL)
    _, status = os.waitpid(fork, 0)
    if ended in readable:
        client.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))


def become(asked: dict, streams: list[int]) -> None:
    """Be the interpreter that the client wanted; never returns."""
    code = 1
    try:
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
        sys.stdin = open(0, closefd=False)  # noqa: SIM115
        os.environ.clear()
        os.environ.update(asked["environment"])
        os.chdir(asked["folder"])
        sys.argv, sys.executable = asked["arguments"], asked["executable"]
        if zero := sys.modules.get("lightning.fabric.utilities.rank_zero"):  # it looks when it is imported
            zero.rank_zero_only.rank = zero._get_rank() or 0
        packages = filter(None, asked["environment"].get("PYTHONPATH", "").split(os.pathsep))
        if sys.argv[0] == "-m":
            module = sys.argv[1]
            sys.argv = sys.argv[1:]
            sys.path[:0] = ["", *packages]
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        else:
            sys.path[:0] = [str(Path(sys.argv[0]).parent), *packages]
            runpy.run_path(sys.argv[0], run_name="__main__")
        code = 0
    except SystemExit as leaving:
        if not isinstance(leaving.code, int | None):
            print(leaving.code, file=sys.stderr)
        code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)


if __name__ == "__main__":
    del sys.path[0]  # this folder has a lightning_module of its own
    for name in sys.argv[2:]:
        with contextlib.suppress(ImportError):  # not every interpreter has all of them
            importlib.import_module(name)
    serve(socket.socket(fileno=int(sys.argv[1])))
