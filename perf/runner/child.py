"""Child processes that never outlive the runner, and what a process has used of the machine.

Invariants
  C1  A child is stopped by its own id, on every way out; if the runner is killed, the kernel
      kills its children.
  C2  Usage is of the whole process: all its threads, also those that have ended.
"""

import ctypes
import os
import resource
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")
OPEN_FILES = 200_000
STOP_SECONDS = 60
PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None)


class Child:
    """A process with its output in a file."""

    def __init__(self, argv, out, err, environment=None):
        self.out, self.err = Path(out), Path(err)
        with open(self.out, "wb") as out_file, open(self.err, "ab") as err_file:
            self.process = subprocess.Popen(
                [str(word) for word in argv],
                stdin=subprocess.DEVNULL,
                stdout=out_file,
                stderr=err_file,
                env={**os.environ, **(environment or {})},
                start_new_session=True,
                preexec_fn=_prepare,
            )
        self.pid = self.process.pid

    def is_running(self):
        return self.process.poll() is None

    def wait(self, seconds):
        """The exit code; a child that takes longer is stopped, and TimeoutError raised."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.stop(STOP_SECONDS)
            raise TimeoutError(f"process {self.pid} ran longer than {seconds:.0f} s") from None

    def stop(self, patience=STOP_SECONDS):
        """Asks it to end, and kills it if it does not."""
        if self.is_running():
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(patience)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.process.wait()

    def signal(self, number):
        """Sends it a signal, if it still runs."""
        if self.is_running():
            self.process.send_signal(number)

    def kill(self):
        """Ends it at once, as a crash does."""
        self.process.kill()

    def last_words(self, lines=5):
        """The end of what it wrote to its standard error."""
        return "\n".join(self.err.read_text(errors="replace").splitlines()[-lines:])


def _prepare():
    """In the child, before it becomes another program."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_FILES, max(OPEN_FILES, limit)))
    except (ValueError, OSError):
        # Only root may raise the hard limit.
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))


@dataclass(frozen=True)
class Usage:
    """What a process has used since it began."""

    at: float
    cpu_s: float
    rss_bytes: int
    rss_peak_bytes: int
    read_bytes: int
    written_bytes: int
    switches_voluntary: int
    switches_forced: int

    @staticmethod
    def of(pid):
        proc = Path("/proc") / str(pid)
        status = _fields(proc / "status")
        disk = _fields(proc / "io")
        switches = _switches(proc)
        return Usage(
            at=time.monotonic(),
            cpu_s=parse_cpu((proc / "stat").read_text()),
            rss_bytes=status["VmRSS"] * 1024,
            rss_peak_bytes=status["VmHWM"] * 1024,
            read_bytes=disk["read_bytes"],
            written_bytes=disk["write_bytes"] - disk["cancelled_write_bytes"],
            switches_voluntary=switches[0],
            switches_forced=switches[1],
        )

    def since(self, before):
        """The figures of the time from `before` to this."""
        seconds = max(self.at - before.at, 1e-9)
        cpu_s = self.cpu_s - before.cpu_s
        return {
            "cpu_s": cpu_s,
            "cpu_cores": cpu_s / seconds,
            "rss_peak_mb": self.rss_peak_bytes / 1e6,
            "disk_read_mb": (self.read_bytes - before.read_bytes) / 1e6,
            "disk_written_mb": (self.written_bytes - before.written_bytes) / 1e6,
            # Those of threads that ended in between are not told by the kernel.
            "switches_voluntary": max(0, self.switches_voluntary - before.switches_voluntary),
            "switches_forced": max(0, self.switches_forced - before.switches_forced),
        }


def parse_cpu(stat):
    """Seconds of user and system time in the text of /proc/PID/stat."""
    # The name in parentheses may hold anything, so count from behind it.
    fields = stat[stat.rindex(")") + 2 :].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def _fields(path):
    """`name: number` of each line; what is no number is left out."""
    pairs = (line.split(":", 1) for line in path.read_text().splitlines() if ":" in line)
    words = ((name, rest.split()) for name, rest in pairs)
    return {name: int(rest[0]) for name, rest in words if rest and rest[0].isdigit()}


def _switches(proc):
    voluntary = forced = 0
    for task in (proc / "task").iterdir():
        try:
            status = _fields(task / "status")
        except (FileNotFoundError, ProcessLookupError):
            continue  # The thread ended while we looked.
        voluntary += status["voluntary_ctxt_switches"]
        forced += status["nonvoluntary_ctxt_switches"]
    return voluntary, forced
