//! How many bytes of records each core takes in, for whoever places new topics.
//!
//! Lives on: the node, one for all cores; each counts for itself, core 0 looks.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::base::ids::CoreId;
use crate::base::time::Instant;

/// Between two looks that are not this far apart there is nothing to tell.
const LOOK: Duration = Duration::from_secs(1);

/// A core's count, apart from those of the others in the processor's cache.
#[derive(Default)]
#[repr(align(64))]
struct Taken(AtomicU64);

/// See the module's documentation.
pub struct Traffic {
    taken: Vec<Taken>,
    look: Mutex<Look>,
}

#[derive(Default)]
struct Look {
    at: Instant,
    taken: Vec<u64>,
    rates: Vec<u64>,
}

impl Traffic {
    pub fn new(cores: u16) -> Traffic {
        let taken = (0..cores).map(|_| Taken::default()).collect();
        let zeros = vec![0; usize::from(cores)];
        let look = Look { at: Instant::default(), taken: zeros.clone(), rates: zeros };
        Traffic { taken, look: Mutex::new(look) }
    }

    /// A core has taken in so many bytes.
    pub fn taken_in(&self, core: CoreId, bytes: u32) {
        if let Some(Taken(taken)) = self.taken.get(core.index()) {
            taken.fetch_add(u64::from(bytes), Ordering::Relaxed);
        }
    }

    /// Bytes a second of each core since it was last looked.
    pub fn rates(&self, now: Instant) -> Vec<u64> {
        let mut look = self.look.lock().unwrap_or_else(PoisonError::into_inner);
        let elapsed = now - look.at;
        if elapsed >= LOOK {
            let taken = self.taken.iter().map(|Taken(taken)| taken.load(Ordering::Relaxed));
            let taken: Vec<u64> = taken.collect();
            let grown = taken.iter().zip(&look.taken).map(|(now, before)| now - before);
            look.rates = grown.map(|bytes| (bytes as f64 / elapsed.as_secs_f64()) as u64).collect();
            (look.at, look.taken) = (now, taken);
        }
        look.rates.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_of_the_time_since_the_last_look() {
        let traffic = Traffic::new(2);
        let start = Instant::default() + LOOK;
        assert_eq!(traffic.rates(start), [0, 0]);
        traffic.taken_in(CoreId(1), 3000);
        traffic.taken_in(CoreId(7), 1);
        assert_eq!(traffic.rates(start + LOOK / 2), [0, 0], "too soon");
        assert_eq!(traffic.rates(start + LOOK * 3), [0, 1000]);
        assert_eq!(traffic.rates(start + LOOK * 3), [0, 1000], "as it was");
        assert_eq!(traffic.rates(start + LOOK * 9), [0, 0]);
    }
}
