"""Children end with the runner, whatever way it ends."""

import signal
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path

from runner.child import Child

HERE = Path(__file__).resolve().parent.parent
PARENT = """
import sys, time
sys.path.insert(0, sys.argv[1])
from runner.child import Child
child = Child(["sleep", "600"], "/dev/null", "/dev/null")
print(child.pid, flush=True)
time.sleep(600)
"""


def is_alive(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state not in "ZX"


class Children(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        self.out, self.err = (Path(self.folder.name) / name for name in ("out", "err"))

    def test_output_and_exit_code(self):
        child = Child(["sh", "-c", "echo yes; echo no >&2; exit 3"], self.out, self.err)
        self.assertEqual(child.wait(30), 3)
        self.assertEqual((self.out.read_text(), child.last_words()), ("yes\n", "no"))

    def test_one_that_takes_too_long_is_stopped(self):
        child = Child(["sleep", "600"], self.out, self.err)
        with self.assertRaises(TimeoutError):
            child.wait(0.1)
        self.assertFalse(is_alive(child.pid))

    def test_one_that_does_not_listen_is_killed(self):
        child = Child(["sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.1; done"],
                      self.out, self.err)
        while "ready" not in self.out.read_text():
            time.sleep(0.01)
        child.stop(patience=0.2)
        self.assertEqual(child.process.returncode, -signal.SIGKILL)

    def test_none_outlives_a_killed_runner(self):
        parent = subprocess.Popen([sys.executable, "-c", PARENT, str(HERE)], text=True,
                                  stdout=subprocess.PIPE)
        with parent, parent.stdout:
            pid = int(parent.stdout.readline())
            self.assertTrue(is_alive(pid))
            parent.kill()
            parent.wait()
        deadline = time.monotonic() + 30
        while is_alive(pid) and time.monotonic() < deadline:
            time.sleep(0.01)
        self.assertFalse(is_alive(pid))
