//! The configuration's file, and a topic's settings as a client sends them.

use corelog::config::{BROKER, BrokerConfig, Source, TOPIC, check_topic_setting, parse_cpus};

pub fn text(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    for setting in TOPIC {
        if let Ok(value) = check_topic_setting(setting.name, text) {
            assert_eq!(check_topic_setting(setting.name, &value).as_ref(), Ok(&value));
        }
    }
    if let Ok(cpus) = parse_cpus(text) {
        assert!(cpus.windows(2).all(|pair| pair[0] < pair[1]));
    }
    let mut config = BrokerConfig::default();
    if config.read_file(text, "the file").is_err() {
        return;
    }
    assert_eq!(config.rows().count(), BROKER.len());
    // C2: a value that was taken has passed its row's check, and passes it again.
    let rows: Vec<_> = config.rows().map(|(row, value, _)| (row.name, value.to_owned())).collect();
    for (name, value) in rows {
        config.set(name, &value, Source::Flag).expect("a value that was taken");
        assert_eq!(config.text(name), value);
    }
}
