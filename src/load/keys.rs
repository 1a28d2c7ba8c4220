//! Keys: which of N numbered keys each record has. Pure; random bits come in.

/// How often each key appears.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyShape {
    None,
    /// Each of N equally.
    Uniform(u64),
    /// The k-th of N in proportion to 1/k.
    Zipf(u64),
}

impl KeyShape {
    pub fn text(self) -> String {
        match self {
            KeyShape::None => "none".to_string(),
            KeyShape::Uniform(count) => format!("uniform:{count}"),
            KeyShape::Zipf(count) => format!("zipf:{count}"),
        }
    }
}

/// A key's bytes: its number in hexadecimal, so that all have one length.
pub const KEY_BYTES: usize = 16;

/// Draws keys; shared by all producers.
#[derive(Clone, Debug)]
pub struct Keys {
    shape: KeyShape,
    /// For zipf: the share of the keys up to each, ascending to 1.
    shares: Vec<f64>,
}

impl Keys {
    pub fn new(shape: KeyShape) -> Keys {
        let mut shares = Vec::new();
        if let KeyShape::Zipf(count) = shape {
            let mut sum = 0.0;
            for rank in 1..=count {
                sum += 1.0 / rank as f64;
                shares.push(sum);
            }
            for share in &mut shares {
                *share /= sum;
            }
        }
        Keys { shape, shares }
    }

    /// The next key's number, by 64 random bits; `None` where records have none.
    pub fn draw(&self, random: u64) -> Option<u64> {
        match self.shape {
            KeyShape::None => None,
            KeyShape::Uniform(count) => Some(below(random, count)),
            KeyShape::Zipf(_) => {
                let share = (random >> 11) as f64 / (1_u64 << 53) as f64;
                Some(self.shares.partition_point(|end| *end <= share) as u64)
            }
        }
    }
}

/// A number below `count`, by 64 random bits.
pub fn below(random: u64, count: u64) -> u64 {
    let scaled = (u128::from(random) * u128::from(count)) >> 64;
    u64::try_from(scaled).unwrap_or(0)
}

/// The bytes of the key with this number.
pub fn written(number: u64) -> [u8; KEY_BYTES] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut key = [b'0'; KEY_BYTES];
    for (place, digit) in key.iter_mut().rev().enumerate() {
        let four = (number >> (4 * place)) & 15;
        *digit = DIGITS[usize::try_from(four).unwrap_or(0)];
    }
    key
}

/// A small generator of random bits (Steele, Lea, Flood: SplitMix).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn counts(shape: KeyShape, draws: u64) -> BTreeMap<u64, u64> {
        let (keys, mut random) = (Keys::new(shape), Random::new(7));
        let mut counts = BTreeMap::new();
        for _ in 0..draws {
            *counts.entry(keys.draw(random.bits()).expect("a key")).or_insert(0) += 1;
        }
        counts
    }

    #[test]
    fn uniform_keys_are_equally_frequent() {
        let counts = counts(KeyShape::Uniform(10), 100_000);
        assert_eq!(counts.len(), 10);
        assert!(counts.values().all(|count| (9_000..11_000).contains(count)), "{counts:?}");
    }

    #[test]
    fn the_second_of_zipf_is_half_as_frequent_as_the_first() {
        let counts = counts(KeyShape::Zipf(1000), 200_000);
        let of = |number| counts[&number] as f64;
        // 1 / H(1000) = 0.1336
        assert!((of(0) / 200_000.0 - 0.1336).abs() < 0.005, "{}", of(0));
        assert!((of(0) / of(1) - 2.0).abs() < 0.1);
        assert!((of(0) / of(9) - 10.0).abs() < 1.0);
    }

    #[test]
    fn a_key_is_its_number_in_hexadecimal() {
        assert_eq!(&written(0xbeef), b"000000000000beef");
        assert_eq!(Keys::new(KeyShape::None).draw(1), None);
    }
}
