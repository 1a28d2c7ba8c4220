"""The machine and the tree that figures belong to."""

import datetime
import os
import platform
import subprocess
import time
from pathlib import Path


DIRTY_BYTES_MAX = 4 << 20
SETTLE_SECONDS = 2


def settle(patience=60):
    """Waits until what earlier turns wrote or removed has reached the device, and a moment more:
    the next turn shall not pay for them."""
    os.sync()
    until = time.monotonic() + patience
    while unwritten() > DIRTY_BYTES_MAX and time.monotonic() < until:
        time.sleep(0.2)
    time.sleep(SETTLE_SECONDS)


def unwritten(text=None):
    """Bytes in the page cache that are dirty or being written back, of `/proc/meminfo`."""
    lines = (text or Path("/proc/meminfo").read_text()).splitlines()
    fields = (line.split() for line in lines if line.startswith(("Dirty:", "Writeback:")))
    return sum(int(field[1]) << 10 for field in fields)


def describe(folder, root):
    """What a reader must know of the machine; `folder` is where the brokers write."""
    device = os.stat(folder).st_dev
    queue = _queue(device)
    return {
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "cpu": _cpu(),
        "cores": f"{len(os.sched_getaffinity(0))} of {os.cpu_count()}",
        "memory": f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.1f} GiB",
        "kernel": platform.release(),
        "system": platform.freedesktop_os_release().get("PRETTY_NAME", ""),
        "file system": _file_system(folder),
        "write cache of the device": _text(queue / "write_cache"),
        "scheduler of the device": _text(queue / "scheduler"),
        "load average before": " ".join(f"{load:.2f}" for load in os.getloadavg()),
        "commit": _commit(root),
        "python": platform.python_version(),
    }


def _cpu():
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def _file_system(folder):
    """Type, device and options of the mount that holds the folder, and of its file system."""
    device = os.stat(folder).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        head, _, tail = line.partition(" - ")
        if head.split()[2] == wanted:
            kind, source, options = tail.split()[:3]
            return f"{kind} on {source} ({head.split()[5]}; {options})"
    return "unknown"


def _queue(device):
    """The settings of the block device, or of the disk that it is a partition of."""
    block = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}")
    return next((at / "queue" for at in (block, block / "..") if (at / "queue").is_dir()), block)


def _text(path):
    return path.read_text().strip() if path.is_file() else "unknown"


def _commit(root):
    def git(*words):
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else ""

    changed = " with changes" if git("status", "--porcelain", "--untracked-files=no") else ""
    return (git("rev-parse", "--short=12", "HEAD") or "unknown") + changed
