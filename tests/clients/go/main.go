// franz-go with its defaults; the verbs are those of ../README.md.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log"
	"os"
	"sort"
	"strings"
	"sync"

	"github.com/twmb/franz-go/pkg/kgo"
)

var codecs = map[string]kgo.CompressionCodec{
	"none":   kgo.NoCompression(),
	"gzip":   kgo.GzipCompression(),
	"snappy": kgo.SnappyCompression(),
	"lz4":    kgo.Lz4Compression(),
	"zstd":   kgo.ZstdCompression(),
}

type options struct {
	bootstrap, topic, writer, codecs, group string
	count                                   int
}

func main() {
	var o options
	flags := flag.NewFlagSet("client", flag.ExitOnError)
	flags.StringVar(&o.bootstrap, "bootstrap", "", "")
	flags.StringVar(&o.topic, "topic", "", "")
	flags.StringVar(&o.writer, "writer", "", "")
	flags.StringVar(&o.codecs, "codecs", "", "")
	flags.StringVar(&o.group, "group", "", "")
	flags.IntVar(&o.count, "count", 0, "")
	if err := flags.Parse(os.Args[2:]); err != nil {
		log.Fatal(err)
	}
	verbs := map[string]func(options){"produce": produce, "consume": consume, "group": group}
	verb, known := verbs[os.Args[1]]
	if !known {
		log.Fatalf("no verb %s", os.Args[1])
	}
	verb(o)
}

func connect(o options, more ...kgo.Opt) *kgo.Client {
	client, err := kgo.NewClient(append(more, kgo.SeedBrokers(o.bootstrap))...)
	if err != nil {
		log.Fatal(err)
	}
	return client
}

func produce(o options) {
	for _, codec := range strings.Split(o.codecs, ",") {
		client := connect(o, kgo.ProducerBatchCompression(codecs[codec]))
		var records []*kgo.Record
		for i := range o.count {
			value := fmt.Sprintf("%s/%s/%d/%s", o.writer, codec, i, strings.Repeat("v", i*37%400))
			records = append(records, &kgo.Record{
				Topic: o.topic,
				Key:   fmt.Appendf(nil, "%s-%d", o.writer, i%7),
				Value: []byte(value),
				Headers: []kgo.RecordHeader{
					{Key: "writer", Value: []byte(o.writer)},
					{Key: "codec", Value: []byte(codec)},
				},
			})
		}
		if err := client.ProduceSync(context.Background(), records...).FirstErr(); err != nil {
			log.Fatal(err)
		}
		client.Close()
	}
}

func consume(o options) {
	start := kgo.ConsumeResetOffset(kgo.NewOffset().AtStart())
	client := connect(o, kgo.ConsumeTopics(o.topic), start)
	defer client.Close()
	for o.count > 0 {
		fetches := client.PollFetches(context.Background())
		fetches.EachError(func(topic string, partition int32, err error) {
			log.Fatalf("%s-%d: %v", topic, partition, err)
		})
		fetches.EachRecord(func(record *kgo.Record) {
			print(record)
			o.count--
		})
	}
}

func group(o options) {
	var lock sync.Mutex
	held := map[int32]bool{}
	change := func(holds bool) func(context.Context, *kgo.Client, map[string][]int32) {
		return func(_ context.Context, _ *kgo.Client, changed map[string][]int32) {
			lock.Lock()
			defer lock.Unlock()
			for _, partition := range changed[o.topic] {
				if held[partition] = holds; !holds {
					delete(held, partition)
				}
			}
			all := []int{}
			for partition := range held {
				all = append(all, int(partition))
			}
			sort.Ints(all)
			show(map[string]any{"assigned": all})
		}
	}
	client := connect(o,
		kgo.ConsumerGroup(o.group),
		kgo.ConsumeTopics(o.topic),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.OnPartitionsAssigned(change(true)),
		kgo.OnPartitionsRevoked(change(false)),
		kgo.OnPartitionsLost(change(false)),
	)
	ctx, end := context.WithCancel(context.Background())
	go func() {
		io.Copy(io.Discard, os.Stdin)
		end()
	}()
	for ctx.Err() == nil {
		client.PollFetches(ctx).EachRecord(print)
	}
	if err := client.CommitUncommittedOffsets(context.Background()); err != nil {
		log.Fatal(err)
	}
	client.Close()
}

func print(record *kgo.Record) {
	headers := map[string]string{}
	for _, header := range record.Headers {
		headers[header.Key] = string(header.Value)
	}
	show(map[string]any{
		"p": record.Partition, "o": record.Offset,
		"k": string(record.Key), "v": string(record.Value), "h": headers,
	})
}

func show(line any) {
	text, err := json.Marshal(line)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(string(text))
}
