"""Become a server that cannot outlive the process that asked for it.

Run by path with a bare interpreter, so it imports the standard library alone:

    python -I -S launch.py PARENT SIGNAL UID:GID|- FOLDER PROGRAM [ARGUMENT...]

It is a program of its own, and not a `preexec_fn`, because Python code between fork and exec may
deadlock in a process with threads, and because the order below matters:

1. The folder is entered before the privileges are dropped. So the server needs no right to any
   folder above it, and a data folder below a 0700 /root works.
2. The parent-death signal is asked for after the uid has changed, since that change clears it.
3. The parent is looked at after that, since it may have died just before.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
# All that the server gets of the environment: PG* variables would change what it does.
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"}


def die_with(parent: int, signum: int) -> None:
    """Have the kernel send us `signum` when the thread that forked us ends."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, ctypes.c_ulong(signum)) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:
        sys.exit("the parent has gone")


def become(uid: int, gid: int) -> None:
    """Give up root for good, with every group."""
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)


def main(arguments: list[str]) -> None:
    """Set the process up as the arguments say, and become the program."""
    parent, signum, account, folder, *program = arguments
    # A session of its own: Ctrl-C in the terminal is for us, and we stop the servers in order.
    os.setsid()
    os.chdir(folder)
    os.umask(0o077)
    if account != "-":
        uid, _, gid = account.partition(":")
        become(int(uid), int(gid))
    # What Python and our parent ignore or block would be inherited through exec.
    for name in ("SIGINT", "SIGPIPE", "SIGXFSZ"):
        signal.signal(getattr(signal, name), signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    die_with(int(parent), int(signum))
    os.execve(program[0], program, ENVIRONMENT)  # noqa: S606  # no shell is wanted


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except OSError as error:
        sys.exit(f"cannot start {sys.argv[5]}: {error}")
