"""kcat with its defaults, told the verbs of ../README.md."""

import json
import re
import subprocess
import sys
import threading

from shared import options, records, show, show_record


def produce(o):
    for codec in o["codecs"].split(","):
        command = ["kcat", "-P", "-b", o["bootstrap"], "-t", o["topic"], "-z", codec, "-K", "\t"]
        command += ["-H", f"writer={o['writer']}", "-H", f"codec={codec}"]
        lines = [k + b"\t" + v for k, v, _ in records(o["writer"], codec, int(o["count"]))]
        subprocess.run(command, input=b"\n".join(lines) + b"\n", check=True)


def print_line(line):
    record = json.loads(line)
    flat = record.get("headers") or []
    headers = [(name, value.encode()) for name, value in zip(flat[::2], flat[1::2])]
    key, value = record["key"].encode(), record["payload"].encode()
    show_record(record["partition"], record["offset"], key, value, headers)


def consume(o):
    command = ["kcat", "-C", "-q", "-u", "-J", "-b", o["bootstrap"], "-t", o["topic"]]
    command += ["-o", "beginning", "-c", o["count"]]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as kcat:
        for line in kcat.stdout:
            print_line(line)
    sys.exit(kcat.returncode)


def group(o):
    command = ["kcat", "-u", "-J", "-b", o["bootstrap"], "-G", o["group"]]
    command += ["-X", "auto.offset.reset=earliest", o["topic"]]
    kcat = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def announce():
        for line in kcat.stderr:
            print(line.decode(), end="", file=sys.stderr)
            if b"assigned:" in line:
                show(assigned=sorted(int(p) for p in re.findall(rb" \[(\d+)\]", line)))

    def stop_at_end_of_input():
        sys.stdin.read()
        kcat.terminate()

    threading.Thread(target=announce).start()
    threading.Thread(target=stop_at_end_of_input, daemon=True).start()
    for line in kcat.stdout:
        print_line(line)
    sys.exit(max(kcat.wait(), 0))


if __name__ == "__main__":
    verb, given = options()
    {"produce": produce, "consume": consume, "group": group}[verb](given)
