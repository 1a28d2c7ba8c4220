"""What the Python clients share: options, the records of a writer, the lines they print."""

import json
import sys


def options():
    """The verb and its options, by name."""
    verb, rest = sys.argv[1], sys.argv[2:]
    return verb, {name[2:]: value for name, value in zip(rest[::2], rest[1::2])}


def records(writer, codec, count):
    """(key, value, headers) of the records that `writer` writes with `codec`."""
    headers = [("writer", writer.encode()), ("codec", codec.encode())]
    for i in range(count):
        key = f"{writer}-{i % 7}"
        value = f"{writer}/{codec}/{i}/" + "v" * (i * 37 % 400)
        yield key.encode(), value.encode(), headers


def show(**line):
    print(json.dumps(line), flush=True)


def show_record(partition, offset, key, value, headers):
    named = {name: content.decode() for name, content in headers or []}
    show(p=partition, o=offset, k=key.decode(), v=value.decode(), h=named)
