"""What the machine still has to write."""

import unittest

from runner import machine

MEMINFO = """\
MemTotal:       24683108 kB
Dirty:              1024 kB
Writeback:           512 kB
WritebackTmp:         64 kB
"""


class Settling(unittest.TestCase):
    def test_dirty_and_written_back_pages_are_counted(self):
        self.assertEqual(machine.unwritten(MEMINFO), 1536 << 10)

    def test_this_kernel_tells(self):
        self.assertGreaterEqual(machine.unwritten(), 0)


if __name__ == "__main__":
    unittest.main()
