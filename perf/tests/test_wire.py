"""Bytes that the runner sends are those of the protocol."""

import struct
import unittest

from runner import wire


class Batch(unittest.TestCase):
    def test_checksum_as_published(self):
        # RFC 3720, B.4: 32 bytes of zeroes, and "123456789" of the CRC catalogue.
        self.assertEqual(wire.crc32c(bytes(32)), 0x8A9136AA)
        self.assertEqual(wire.crc32c(b"123456789"), 0xE3069283)

    def test_numbers_of_variable_length(self):
        known = [(0, b"\0"), (-1, b"\1"), (1, b"\2"), (64, b"\x80\1"), (300, b"\xd8\4")]
        for number, data in known:
            self.assertEqual(wire.varint(number), data)

    def test_a_batch_says_its_length_and_checksum(self):
        batch = wire.record_batch(b"hello")
        length, _, magic, checksum = struct.unpack_from(">iibI", batch, 8)
        self.assertEqual((length, magic), (len(batch) - 12, 2))
        self.assertEqual(checksum, wire.crc32c(batch[21:]))
        self.assertIn(b"hello", batch)


class Errors(unittest.TestCase):
    def test_what_passes_is_told_from_what_stays(self):
        wire.judge("x", 0)
        with self.assertRaises(wire.NotYet):
            wire.judge("x", 5)
        with self.assertRaises(wire.Refusal):
            wire.judge("x", 44)
