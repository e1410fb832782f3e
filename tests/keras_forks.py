"""Keras's processes of the tests, without importing TensorFlow anew for each: that takes 5 of a process's 6 seconds.

A server imports TensorFlow and Keras once. For each process that a test starts it forks, and the fork runs the worker's
script as a new interpreter would: its own arguments, environment, folder, standard streams, exit code and signals.
Nothing that a script does reaches the next one. Where a test changes what an import looks at, such as KERAS_BACKEND, a
real interpreter is started instead.

The interpreter that the tests name is a small script, `CLIENT`. It asks the server and ends as the fork ends; when it
is killed, so is the fork.
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
import traceback
from pathlib import Path

# -S and -E: without packages and the caller's variables it starts in a hundredth of a second.
CLIENT = """#!{python} -SE
import json, os, signal, socket, sys
# A test that changes these wants another Keras; anything but a script is for a real interpreter.
looked_at = {{name: os.environ.get(name) for name in {looked_at!r}}}
if looked_at != {values!r} or not sys.argv[1:] or not sys.argv[1].endswith(".py"):
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
asked = {{"arguments": sys.argv[1:], "environment": dict(os.environ), "folder": os.getcwd()}}
socket.send_fds(server, [b" "], [0, 1, 2])
server.sendall(json.dumps(asked).encode() + b"\\n")
code = int(server.makefile().readline())
if code < 0:
    signal.signal(-code, signal.SIG_DFL) if -code != signal.SIGKILL else None
    os.kill(os.getpid(), -code)
sys.exit(code)
"""
LOOKED_AT = ("KERAS_BACKEND", "TF_USE_LEGACY_KERAS", "TF_ENABLE_ONEDNN_OPTS", "PYTHONPATH", "PYTHONHOME", "HOME")


class KerasForks:
    """The server and the interpreter that asks it; starts when `executable` is first read.

    Args:
        environment: of the server: what a worker gets in the tests.
        python: the interpreter that it is.
    """

    def __init__(self, environment: dict[str, str], python: Path | str = sys.executable) -> None:
        self._environment = environment
        self._python = str(python)
        self._folder: tempfile.TemporaryDirectory | None = None
        self._server: subprocess.Popen | None = None

    @property
    def executable(self) -> str:
        """Path of the interpreter, as `sys.executable` is one."""
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="forks-")
            address, client = Path(self._folder.name, "s"), Path(self._folder.name, "python")
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(str(address))
                listener.listen(64)  # a client may ask while TensorFlow is imported
                self._server = subprocess.Popen(
                    [self._python, __file__, str(listener.fileno())],
                    env=self._environment, stdin=subprocess.PIPE, pass_fds=[listener.fileno()],
                )  # fmt: skip
            values = {name: self._environment.get(name) for name in LOOKED_AT}
            client.write_text(
                CLIENT.format(python=self._python, looked_at=LOOKED_AT, values=values, address=str(address))
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
        sys.argv = asked["arguments"]
        sys.path[0] = str(Path(sys.argv[0]).parent)
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
    for name in ("h5py", "keras", "PIL.Image", "tensorflow", "tf_keras"):
        with contextlib.suppress(ImportError):  # not every interpreter has all of them
            importlib.import_module(name)
    serve(socket.socket(fileno=int(sys.argv[1])))
