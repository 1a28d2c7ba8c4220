//! The sweeper: closes connections that wait too long for their client. One task per core, and
//! none while there are no connections; a request costs it nothing.

use std::rc::Rc;
use std::time::Duration;

use super::{Connection, Connections, Waits};
use crate::base::time::Instant;
use crate::io::{Io, Stream};

impl<I: Io> Connections<I> {
    pub(super) fn start_sweeping(self: &Rc<Self>) {
        if self.sweeping.replace(true) {
            return;
        }
        let connections = self.clone();
        let shortest = self.bounds.idle_max.min(self.bounds.stall_max);
        let pause = (shortest / 4).clamp(Duration::from_millis(20), Duration::from_secs(5));
        self.io.spawn("connection sweeper", async move {
            while !connections.is_empty() {
                connections.io.sleep(pause).await;
                connections.sweep();
            }
            connections.sweeping.set(false);
        });
    }

    fn sweep(&self) {
        let now = self.io.now();
        for (_, connection) in self.open.borrow().iter() {
            if let Some(why) = self.overdue(connection, now) {
                let peer = connection.stream.peer();
                match why {
                    Overdue::Idle => tracing::debug!("{peer} is closed: it was idle"),
                    Overdue::Frame => {
                        tracing::warn!("{peer} is closed: it stopped inside a request");
                    }
                    Overdue::Answers => {
                        tracing::warn!("{peer} is closed: it does not take its answers");
                    }
                }
                connection.answers.end();
                connection.stream.shutdown();
            }
        }
    }

    fn overdue(&self, connection: &Connection<I>, now: Instant) -> Option<Overdue> {
        let longer = |since: Instant, bound: Duration| now - since > bound;
        if connection.writes_since.get().is_some_and(|since| longer(since, self.bounds.stall_max)) {
            return Some(Overdue::Answers);
        }
        match connection.waits.get() {
            (Waits::Request, since) if longer(since, self.bounds.idle_max) => Some(Overdue::Idle),
            (Waits::Frame, since) if longer(since, self.bounds.stall_max) => Some(Overdue::Frame),
            _ => None,
        }
    }
}

enum Overdue {
    Idle,
    Frame,
    Answers,
}
