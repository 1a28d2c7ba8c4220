//! Seeded chance: the one source of every random choice in a world.

use std::cell::Cell;

/// A stream of random numbers (splitmix64); the same seed gives the same stream.
pub struct Chance {
    state: Cell<u64>,
}

impl Chance {
    pub fn new(seed: u64) -> Chance {
        Chance { state: Cell::new(mix(seed ^ 0x0063_6f72_656c_6f67)) }
    }

    /// 64 random bits.
    pub fn bits(&self) -> u64 {
        let state = self.state.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.state.set(state);
        mix(state)
    }

    /// A number below `bound`; 0 if that is 0.
    pub fn below(&self, bound: u64) -> u64 {
        let product = u128::from(self.bits()) * u128::from(bound);
        (product >> 64) as u64 // below `bound`, which is 64 bits wide
    }

    /// An index into something of `length` elements.
    pub fn index(&self, length: usize) -> usize {
        self.below(length as u64) as usize // below `length`, which is a usize
    }

    /// A number from `low` to `high`, both included.
    pub fn between(&self, (low, high): (u64, u64)) -> u64 {
        low + self.below(high.saturating_sub(low).saturating_add(1))
    }

    /// True once in `many` times on average; never if that is 0.
    pub fn one_in(&self, many: u64) -> bool {
        many != 0 && self.below(many) == 0
    }

    pub fn coin(&self) -> bool {
        self.bits() & 1 == 1
    }
}

/// Spreads a number's bits over all 64; a bijection.
pub fn mix(number: u64) -> u64 {
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}
