//! Which parts of a chunk of memory are free: buddies, the halves of halves of the chunk.
//!
//!     | 2 MiB                         |   node 1
//!     | 1 MiB         | 1 MiB         |   nodes 2, 3
//!     | 512 K | ...                   |   nodes 4 to 7, and so on down to the leaves
//!
//! Lives on: every core, in `buffer`, one for each chunk.
//!
//! Invariants
//!   U1  A node tells the largest part that is free within it, 0 if none is: a whole free node
//!       tells its own size.
//!   U2  A part that is taken has a node that tells 0; those below it still tell that they are
//!       whole, as they are when it is given back, and nobody asks them before.

/// Leaves of a chunk, the smallest parts.
pub const LEAVES: usize = 1 << WHOLE;
/// The order of the whole chunk: a part of order n has 2^n leaves.
pub const WHOLE: u8 = 9;

/// One chunk's parts.
pub struct Buddies {
    /// For each node, from 1 on, the order of the largest free part, plus 1.
    largest: Box<[u8; 2 * LEAVES]>,
}

impl Buddies {
    /// A chunk that is all free.
    pub fn new() -> Buddies {
        let mut largest = Box::new([0; 2 * LEAVES]);
        for order in 0..=WHOLE {
            largest[LEAVES >> order..(2 * LEAVES) >> order].fill(order + 1);
        }
        Buddies { largest }
    }

    /// The order of the largest free part.
    pub fn largest(&self) -> Option<u8> {
        self.largest[1].checked_sub(1)
    }

    /// Takes a part of `order`; its first leaf. `None` if no part as large is free.
    pub fn take(&mut self, order: u8) -> Option<usize> {
        if self.largest[1] <= order {
            return None;
        }
        let mut node = 1;
        for _ in order..WHOLE {
            let (left, right) = (self.largest[2 * node], self.largest[2 * node + 1]);
            // The half that has less, if it has enough: large parts stay whole.
            let goes_left = left > order && (left <= right || right <= order);
            node = 2 * node + usize::from(!goes_left);
        }
        self.largest[node] = 0;
        self.tell_above(node, order);
        Some((node << order) - LEAVES)
    }

    /// Gives back a part that is taken.
    pub fn give_back(&mut self, leaf: usize, order: u8) {
        let node = (LEAVES + leaf) >> order;
        debug_assert_eq!(self.largest[node], 0, "U2: it is taken");
        self.largest[node] = order + 1;
        self.tell_above(node, order);
    }

    /// Mends what the nodes above `node`, of `order`, tell.
    fn tell_above(&mut self, mut node: usize, order: u8) {
        for below in order + 1..=WHOLE {
            node /= 2;
            let (left, right) = (self.largest[2 * node], self.largest[2 * node + 1]);
            let is_whole = left == below && right == below;
            self.largest[node] = if is_whole { below + 1 } else { left.max(right) };
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_chunk_is_halved_and_becomes_whole_again() {
        let mut parts = Buddies::new();
        assert_eq!(parts.largest(), Some(WHOLE));
        assert_eq!(parts.take(0), Some(0));
        assert_eq!(parts.take(WHOLE), None);
        assert_eq!(parts.take(WHOLE - 1), Some(LEAVES / 2));
        assert_eq!(parts.take(0), Some(1), "beside the other small one");
        assert_eq!(parts.largest(), Some(WHOLE - 2));
        parts.give_back(LEAVES / 2, WHOLE - 1);
        parts.give_back(0, 0);
        parts.give_back(1, 0);
        assert_eq!(parts.take(WHOLE), Some(0));
        assert_eq!((parts.largest(), parts.take(0)), (None, None));
    }

    /// What is done, of which order, to which part.
    fn step() -> impl Strategy<Value = (u8, u8, prop::sample::Index)> {
        (0..3_u8, 0..=WHOLE, any::<prop::sample::Index>())
    }

    proptest! {
        /// Against a list of the leaves that are taken.
        #[test]
        fn parts_never_overlap_and_what_is_free_is_found(
            steps in prop::collection::vec(step(), 1..200)
        ) {
            let mut parts = Buddies::new();
            let mut taken: Vec<(usize, u8)> = Vec::new();
            for (kind, order, which) in steps {
                let at = if taken.is_empty() { 0 } else { which.index(taken.len()) };
                match kind {
                    0 if !taken.is_empty() => {
                        let (leaf, order) = taken.swap_remove(at);
                        parts.give_back(leaf, order);
                    }
                    _ => {
                        let size = 1 << order;
                        let is_free = |first: &usize| {
                            taken.iter().all(|(leaf, order)| {
                                leaf + (1 << order) <= *first || first + size <= *leaf
                            })
                        };
                        let places = (0..LEAVES).step_by(size);
                        let expected: Vec<_> = places.filter(is_free).collect();
                        let part = parts.take(order);
                        prop_assert_eq!(part.is_some(), !expected.is_empty());
                        if let Some(leaf) = part {
                            prop_assert!(expected.contains(&leaf));
                            taken.push((leaf, order));
                        }
                    }
                }
            }
            for (leaf, order) in taken {
                parts.give_back(leaf, order);
            }
            prop_assert_eq!(parts.largest(), Some(WHOLE));
        }
    }
}
