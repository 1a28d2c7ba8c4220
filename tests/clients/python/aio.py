"""aiokafka with its defaults; the verbs are those of ../README.md."""

import asyncio
import sys

from aiokafka import (
    AIOKafkaConsumer,
    AIOKafkaProducer,
    ConsumerRebalanceListener,
    TopicPartition,
)

from shared import options, records, show, show_record


async def produce(o):
    for codec in o["codecs"].split(","):
        compression = None if codec == "none" else codec
        producer = AIOKafkaProducer(
            bootstrap_servers=o["bootstrap"], compression_type=compression
        )
        await producer.start()
        sent = []
        for key, value, headers in records(o["writer"], codec, int(o["count"])):
            sent.append(await producer.send(o["topic"], value, key, headers=headers))
        await asyncio.gather(*sent)
        await producer.stop()


def print_record(record):
    show_record(record.partition, record.offset, record.key, record.value, record.headers)


async def consume(o):
    consumer = AIOKafkaConsumer(bootstrap_servers=o["bootstrap"], auto_offset_reset="earliest")
    await consumer.start()
    await consumer._client.force_metadata_update()
    consumer._client.add_topic(o["topic"])
    await consumer._client.force_metadata_update()
    all_of_it = [TopicPartition(o["topic"], p) for p in consumer.partitions_for_topic(o["topic"])]
    consumer.assign(all_of_it)
    wanted = int(o["count"])
    while wanted > 0:
        print_record(await consumer.getone())
        wanted -= 1
    await consumer.stop()


class Announce(ConsumerRebalanceListener):
    async def on_partitions_revoked(self, revoked):
        pass

    async def on_partitions_assigned(self, assigned):
        show(assigned=sorted(p.partition for p in assigned))


async def group(o):
    consumer = AIOKafkaConsumer(
        bootstrap_servers=o["bootstrap"], group_id=o["group"], auto_offset_reset="earliest"
    )
    consumer.subscribe([o["topic"]], listener=Announce())
    await consumer.start()
    ended = asyncio.create_task(asyncio.to_thread(sys.stdin.read))
    while not ended.done():
        for batch in (await consumer.getmany(timeout_ms=100)).values():
            for record in batch:
                print_record(record)
    await consumer.stop()


if __name__ == "__main__":
    verb, given = options()
    asyncio.run({"produce": produce, "consume": consume, "group": group}[verb](given))
