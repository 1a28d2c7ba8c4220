"""As much of the Kafka protocol as the runner needs: is a broker there, create topics, write and
read a record in each of many partitions. Versions without tagged fields, which every broker since
Kafka 2.4 speaks.
"""

import socket
import struct
import time

PRODUCE, FETCH, METADATA, API_VERSIONS, CREATE_TOPICS, CREATE_PARTITIONS = 0, 1, 3, 18, 19, 37
VERSIONS = {
    PRODUCE: 7, FETCH: 4, METADATA: 7, API_VERSIONS: 0, CREATE_TOPICS: 4, CREATE_PARTITIONS: 1,
}
TOPIC_ALREADY_EXISTS = 36
INVALID_PARTITIONS = 37
# What a broker says while it starts, or while a topic appears: unknown topic, no leader, not the
# leader, timed out, not available, storage, coordinator loading or absent, not the controller.
PASSING = {3, 5, 6, 7, 8, 14, 15, 16, 41, 56}
# Kafka's controller refuses more in one request.
PARTITIONS_PER_REQUEST = 5000
READ_BYTES_MAX = 1 << 16
ANSWER_SECONDS = 120
RETRY_SECONDS = 0.001
# Metadata of many partitions is work for both sides.
METADATA_SECONDS = 0.25


class Refusal(Exception):
    """The broker answered with an error code that will not pass."""


class NotYet(Exception):
    """The broker cannot do it yet."""


class Connection:
    """One connection; requests and answers in turn."""

    def __init__(self, port, seconds=ANSWER_SECONDS):
        self.socket = socket.create_connection(("127.0.0.1", port), seconds)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self.socket.close()

    def ask(self, api, body):
        """The answer's body, as a cursor."""
        head = struct.pack(">hhi", api, VERSIONS[api], 1) + text("perf")
        self.socket.sendall(struct.pack(">i", len(head) + len(body)) + head + body)
        (length,) = struct.unpack(">i", self._take(4))
        answer = Cursor(self._take(length))
        answer.number("i")
        return answer

    def _take(self, length):
        taken = bytearray()
        while len(taken) < length:
            piece = self.socket.recv(length - len(taken))
            if not piece:
                raise ConnectionError("the broker closed the connection")
            taken += piece
        return bytes(taken)

    def greet(self):
        code = self.ask(API_VERSIONS, b"").number("h")
        judge("ApiVersions", code)

    def create_topic(self, name, partitions):
        """Creates what is missing of it."""
        led = self.leaders(name)
        if led == 0:
            self._create(name, min(partitions, PARTITIONS_PER_REQUEST))
            led = self.leaders(name)
        if led < partitions:
            if led % PARTITIONS_PER_REQUEST == 0 and led > 0:
                self._grow(name, min(partitions, led + PARTITIONS_PER_REQUEST))
            raise NotYet(f"{led} of {partitions} partitions have a leader")

    def _create(self, name, partitions):
        self.create_topics([name], partitions)

    def create_topics(self, names, partitions):
        """Creates in one request those of the topics that are missing."""
        made = [text(name) + struct.pack(">ihii", partitions, 1, 0, 0) for name in names]
        request = struct.pack(">i", len(made)) + b"".join(made)
        answer = self.ask(CREATE_TOPICS, request + struct.pack(">i?", ANSWER_SECONDS * 1000, False))
        answer.number("i")  # throttle time
        for _ in range(answer.number("i")):
            answer.text()
            code = answer.number("h")
            judge("CreateTopics", 0 if code == TOPIC_ALREADY_EXISTS else code, answer)
            answer.text()

    def _grow(self, name, partitions):
        topic = text(name) + struct.pack(">ii", partitions, -1)
        request = struct.pack(">i", 1) + topic + struct.pack(">i?", ANSWER_SECONDS * 1000, False)
        answer = self.ask(CREATE_PARTITIONS, request)
        answer.number("i"), answer.number("i"), answer.text()
        code = answer.number("h")
        # An earlier attempt succeeded, and metadata does not tell of it yet.
        judge("CreatePartitions", 0 if code == INVALID_PARTITIONS else code, answer)

    def leaders(self, name):
        """How many partitions of the topic have a leader."""
        answer = self.ask(METADATA, struct.pack(">i", 1) + text(name) + b"\0")
        answer.number("i")  # throttle time
        for _ in range(answer.number("i")):
            answer.number("i"), answer.text(), answer.number("i"), answer.text()
        answer.text(), answer.number("i")  # cluster, controller
        led = 0
        for _ in range(answer.number("i")):
            answer.number("h"), answer.text(), answer.number("b")
            for _ in range(answer.number("i")):
                code, _, leader = answer.number("h"), answer.number("i"), answer.number("i")
                led += code == 0 and leader >= 0
                answer.number("i")  # leader epoch
                for _ in range(3):  # replicas, in sync, offline
                    for _ in range(answer.number("i")):
                        answer.number("i")
        return led

    def write(self, topic, partition, value):
        """Writes one record, acknowledged by all."""
        self.write_each(topic, {partition: value})

    def write_each(self, topic, values):
        """Writes a record into each partition that `values` has, acknowledged by all."""
        body = bytearray(struct.pack(">hhi", -1, -1, ANSWER_SECONDS * 1000))
        body += struct.pack(">i", 1) + text(topic) + struct.pack(">i", len(values))
        for partition, value in values.items():
            batch = record_batch(value)
            body += struct.pack(">ii", partition, len(batch)) + batch
        answer = self.ask(PRODUCE, bytes(body))
        answer.number("i"), answer.text()
        for _ in range(answer.number("i")):
            answer.number("i")
            judge("Produce", answer.number("h"))
            answer.skip(24)  # offset, time, log start

    def read(self, topic, partition):
        """What a partition holds from offset 0 on, as bytes of record batches."""
        head = struct.pack(">iiiib", -1, 0, 1, READ_BYTES_MAX, 0)
        place = struct.pack(">iqi", partition, 0, READ_BYTES_MAX)
        topics = struct.pack(">i", 1) + text(topic) + struct.pack(">i", 1) + place
        answer = self.ask(FETCH, head + topics)
        answer.skip(8)  # throttle time, one topic
        answer.text()
        answer.skip(8)  # one partition, which
        judge("Fetch", answer.number("h"))
        answer.skip(16)  # high watermark, last stable offset
        answer.skip(16 * max(0, answer.number("i")))  # aborted transactions
        return answer.take(max(0, answer.number("i")))


def judge(what, code, answer=None):
    """Raises what an error code means; `answer` goes on with a message."""
    if code in PASSING:
        raise NotYet(f"{what}: error {code}")
    if code != 0:
        raise Refusal(f"{what}: error {code}" + (f": {answer.text()}" if answer else ""))


class Cursor:
    """Reads an answer from its beginning to its end."""

    def __init__(self, data):
        self.data, self.at = data, 0

    def number(self, kind):
        (value,) = struct.unpack_from(">" + kind, self.data, self.at)
        self.at += struct.calcsize(">" + kind)
        return value

    def text(self):
        length = self.number("h")
        return None if length < 0 else self.take(length).decode()

    def take(self, length):
        self.skip(length)
        return self.data[self.at - length : self.at]

    def skip(self, length):
        self.at += length


def persist(port, action, seconds, is_running=lambda: True, pause=RETRY_SECONDS):
    """`action(connection)` until it succeeds; a broker that is starting refuses in many ways."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            with Connection(port) as connection:
                return action(connection)
        except (OSError, NotYet) as error:
            if not is_running():
                raise RuntimeError("the broker ended") from None
            if time.monotonic() > deadline:
                raise TimeoutError(f"the broker does not serve: {error}") from None
        time.sleep(pause)


def text(value):
    data = value.encode()
    return struct.pack(">h", len(data)) + data


def record_batch(value):
    """A batch of format 2 with one record that has no key."""
    record = b"\0" + varint(0) + varint(0) + varint(-1) + varint(len(value)) + value + varint(0)
    record = varint(len(record)) + record
    now = int(time.time() * 1000)
    checked = struct.pack(">hiqqqhii", 0, 0, now, now, -1, -1, -1, 1) + record
    return struct.pack(">qiibI", 0, 9 + len(checked), -1, 2, crc32c(checked)) + checked


def varint(number):
    zigzag, out = (number << 1) ^ (number >> 63), bytearray()
    while zigzag >= 0x80:
        out.append(zigzag & 0x7F | 0x80)
        zigzag >>= 7
    return bytes(out) + bytes([zigzag])


def crc32c(data):
    register = 0xFFFFFFFF
    for byte in data:
        register = CRC_TABLE[(register ^ byte) & 0xFF] ^ (register >> 8)
    return register ^ 0xFFFFFFFF


def _crc_entry(value):
    for _ in range(8):
        value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
    return value


CRC_TABLE = [_crc_entry(value) for value in range(256)]
