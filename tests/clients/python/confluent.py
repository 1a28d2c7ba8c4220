"""confluent-kafka with its defaults; the verbs are those of ../README.md."""

import sys
import threading

from confluent_kafka import OFFSET_BEGINNING, Consumer, Producer, TopicPartition

from shared import options, records, show, show_record


def produce(o):
    for codec in o["codecs"].split(","):
        producer = Producer({"bootstrap.servers": o["bootstrap"], "compression.type": codec})
        failures = []
        for key, value, headers in records(o["writer"], codec, int(o["count"])):
            told = lambda error, _: failures.append(error) if error else None
            producer.produce(o["topic"], value, key, headers=headers, on_delivery=told)
        left = producer.flush(60)
        if left or failures:
            sys.exit(f"{codec}: {left} records not delivered, failures: {failures}")


def print_next(consumer):
    """Prints the next record; whether there was one."""
    message = consumer.poll(0.1)
    if message is None:
        return False
    if message.error():
        sys.exit(str(message.error()))
    show_record(
        message.partition(), message.offset(), message.key(), message.value(), message.headers()
    )
    return True


def consume(o):
    consumer = Consumer({"bootstrap.servers": o["bootstrap"], "group.id": "not-joined"})
    topic = consumer.list_topics(o["topic"]).topics[o["topic"]]
    consumer.assign([TopicPartition(o["topic"], p, OFFSET_BEGINNING) for p in topic.partitions])
    wanted = int(o["count"])
    while wanted > 0:
        wanted -= print_next(consumer)
    consumer.close()


def group(o):
    settings = {"bootstrap.servers": o["bootstrap"], "group.id": o["group"]}
    consumer = Consumer(settings | {"auto.offset.reset": "earliest"})
    tell = lambda _, given: show(assigned=sorted(p.partition for p in given))
    consumer.subscribe([o["topic"]], on_assign=tell)
    ended = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
    while not ended.is_set():
        print_next(consumer)
    consumer.close()


if __name__ == "__main__":
    verb, given = options()
    {"produce": produce, "consume": consume, "group": group}[verb](given)
