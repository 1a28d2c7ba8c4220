// The Java client with its defaults; the verbs are those of ../README.md.

import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.Collection;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import java.util.TreeSet;
import java.util.concurrent.atomic.AtomicBoolean;
import java.util.stream.Collectors;
import org.apache.kafka.clients.consumer.ConsumerRebalanceListener;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.PartitionInfo;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.header.Header;

public final class Client {
    private static final String STRING_SERIALIZER =
        "org.apache.kafka.common.serialization.StringSerializer";
    private static final String STRING_DESERIALIZER =
        "org.apache.kafka.common.serialization.StringDeserializer";

    public static void main(String[] args) throws Exception {
        Map<String, String> options = new HashMap<>();
        for (int i = 1; i + 1 < args.length; i += 2) {
            options.put(args[i].substring(2), args[i + 1]);
        }
        switch (args[0]) {
            case "produce" -> produce(options);
            case "consume" -> consume(options);
            case "group" -> group(options);
            default -> throw new IllegalArgumentException("no verb " + args[0]);
        }
    }

    private static void produce(Map<String, String> options) throws Exception {
        String writer = options.get("writer");
        for (String codec : options.get("codecs").split(",")) {
            Properties settings = new Properties();
            settings.put("bootstrap.servers", options.get("bootstrap"));
            settings.put("compression.type", codec);
            settings.put("key.serializer", STRING_SERIALIZER);
            settings.put("value.serializer", STRING_SERIALIZER);
            try (KafkaProducer<String, String> producer = new KafkaProducer<>(settings)) {
                java.util.List<java.util.concurrent.Future<?>> sent = new java.util.ArrayList<>();
                for (int i = 0; i < Integer.parseInt(options.get("count")); i++) {
                    String value = writer + "/" + codec + "/" + i + "/" + "v".repeat(i * 37 % 400);
                    ProducerRecord<String, String> record =
                        new ProducerRecord<>(options.get("topic"), writer + "-" + i % 7, value);
                    record.headers().add("writer", writer.getBytes(StandardCharsets.UTF_8));
                    record.headers().add("codec", codec.getBytes(StandardCharsets.UTF_8));
                    sent.add(producer.send(record));
                }
                for (java.util.concurrent.Future<?> one : sent) {
                    one.get();
                }
            }
        }
    }

    private static Properties consumerSettings(Map<String, String> options) {
        Properties settings = new Properties();
        settings.put("bootstrap.servers", options.get("bootstrap"));
        settings.put("key.deserializer", STRING_DESERIALIZER);
        settings.put("value.deserializer", STRING_DESERIALIZER);
        settings.put("auto.offset.reset", "earliest");
        return settings;
    }

    private static void consume(Map<String, String> options) {
        int wanted = Integer.parseInt(options.get("count"));
        try (KafkaConsumer<String, String> consumer =
                 new KafkaConsumer<>(consumerSettings(options))) {
            List<TopicPartition> all = new java.util.ArrayList<>();
            for (PartitionInfo info : consumer.partitionsFor(options.get("topic"))) {
                all.add(new TopicPartition(info.topic(), info.partition()));
            }
            consumer.assign(all);
            consumer.seekToBeginning(all);
            while (wanted > 0) {
                for (ConsumerRecord<String, String> record : consumer.poll(Duration.ofMillis(200))) {
                    print(record);
                    wanted--;
                }
            }
        }
    }

    private static void group(Map<String, String> options) {
        Properties settings = consumerSettings(options);
        settings.put("group.id", options.get("group"));
        AtomicBoolean ended = new AtomicBoolean();
        Thread watch = new Thread(() -> {
            try {
                while (System.in.read() >= 0) { }
            } catch (java.io.IOException failed) {
                System.err.println(failed);
            }
            ended.set(true);
        });
        watch.setDaemon(true);
        watch.start();
        try (KafkaConsumer<String, String> consumer = new KafkaConsumer<>(settings)) {
            consumer.subscribe(List.of(options.get("topic")), new Announce(consumer));
            while (!ended.get()) {
                consumer.poll(Duration.ofMillis(100)).forEach(Client::print);
            }
        }
    }

    private record Announce(KafkaConsumer<?, ?> consumer) implements ConsumerRebalanceListener {
        @Override
        public void onPartitionsAssigned(Collection<TopicPartition> added) {
            TreeSet<Integer> all = new TreeSet<>();
            consumer.assignment().forEach(partition -> all.add(partition.partition()));
            System.out.println("{\"assigned\":" + all + "}");
        }

        @Override
        public void onPartitionsRevoked(Collection<TopicPartition> taken) { }
    }

    private static void print(ConsumerRecord<String, String> record) {
        Map<String, String> headers = new HashMap<>();
        for (Header header : record.headers()) {
            headers.put(header.key(), new String(header.value(), StandardCharsets.UTF_8));
        }
        String joined = headers.entrySet().stream()
            .map(entry -> '"' + entry.getKey() + "\":\"" + entry.getValue() + '"')
            .collect(Collectors.joining(","));
        System.out.printf("{\"p\":%d,\"o\":%d,\"k\":\"%s\",\"v\":\"%s\",\"h\":{%s}}%n",
            record.partition(), record.offset(), record.key(), record.value(), joined);
    }

    private Client() { }
}
