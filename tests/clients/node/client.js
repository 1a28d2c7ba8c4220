// kafkajs with its defaults; the verbs are those of ../README.md.
// The libraries lie where `ci/clients` put them: NODE_PATH names the place.

const { Kafka, CompressionTypes, CompressionCodecs, logLevel } = require('kafkajs')
const snappy = require('kafkajs-snappy')
const lz4 = require('lz4-napi')
const { ZstdCodec } = require('zstd-codec')

const types = {
  none: CompressionTypes.None,
  gzip: CompressionTypes.GZIP,
  snappy: CompressionTypes.Snappy,
  lz4: CompressionTypes.LZ4,
  zstd: CompressionTypes.ZSTD,
}

async function registerCodecs() {
  const zstd = await new Promise((ready) => ZstdCodec.run(ready))
  const streaming = new zstd.Streaming()
  CompressionCodecs[CompressionTypes.Snappy] = snappy
  CompressionCodecs[CompressionTypes.LZ4] = () => ({
    compress: (encoder) => lz4.compressFrame(encoder.buffer),
    decompress: (buffer) => lz4.decompressFrame(buffer),
  })
  CompressionCodecs[CompressionTypes.ZSTD] = () => ({
    compress: async (encoder) => Buffer.from(streaming.compress(encoder.buffer)),
    decompress: async (buffer) => Buffer.from(streaming.decompress(buffer)),
  })
}

async function produce(kafka, o) {
  const producer = kafka.producer()
  await producer.connect()
  for (const codec of o.codecs.split(',')) {
    const messages = []
    for (let i = 0; i < Number(o.count); i++) {
      messages.push({
        key: `${o.writer}-${i % 7}`,
        value: `${o.writer}/${codec}/${i}/${'v'.repeat((i * 37) % 400)}`,
        headers: { writer: o.writer, codec },
      })
    }
    await producer.send({ topic: o.topic, compression: types[codec], messages })
  }
  await producer.disconnect()
}

async function consume(kafka, o) {
  const groupId = `consume-${process.pid}-${Date.now()}`
  const consumer = kafka.consumer({ groupId })
  await consumer.connect()
  await consumer.subscribe({ topic: o.topic, fromBeginning: true })
  let wanted = Number(o.count)
  await new Promise((all, failed) => {
    consumer.on(consumer.events.CRASH, (event) => failed(event.payload.error))
    consumer.run({
      eachMessage: async ({ partition, message }) => {
        print(partition, message)
        wanted -= 1
        if (wanted === 0) all()
      },
    })
  })
  await consumer.disconnect()
}

async function group(kafka, o) {
  const consumer = kafka.consumer({ groupId: o.group })
  await consumer.connect()
  await consumer.subscribe({ topic: o.topic, fromBeginning: true })
  consumer.on(consumer.events.GROUP_JOIN, ({ payload }) => {
    console.log(JSON.stringify({ assigned: payload.memberAssignment[o.topic] || [] }))
  })
  await consumer.run({ eachMessage: async ({ partition, message }) => print(partition, message) })
  await new Promise((ended) => process.stdin.on('end', ended).resume())
  await consumer.disconnect()
}

function print(partition, message) {
  const headers = {}
  for (const [name, value] of Object.entries(message.headers)) headers[name] = value.toString()
  const [k, v] = [message.key.toString(), message.value.toString()]
  console.log(JSON.stringify({ p: partition, o: Number(message.offset), k, v, h: headers }))
}

async function main() {
  const [verb, ...rest] = process.argv.slice(2)
  const options = {}
  for (let i = 0; i + 1 < rest.length; i += 2) options[rest[i].slice(2)] = rest[i + 1]
  await registerCodecs()
  const brokers = [options.bootstrap]
  const kafka = new Kafka({ clientId: 'kafkajs', brokers, logLevel: logLevel.ERROR })
  await { produce, consume, group }[verb](kafka, options)
}

main().then(
  () => process.exit(0),
  (error) => {
    console.error(error)
    process.exit(1)
  },
)
