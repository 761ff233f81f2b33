//! A line on a terminal that shows how far long work is; nothing where nobody looks.

use crate::table;
use cumulet_images::Progress;
use std::io::{IsTerminal, Write};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Between two drawings: fast enough for eyes, slow enough to cost nothing.
const REDRAW: Duration = Duration::from_millis(100);
const WIDTH: u64 = 30;

/// A progress bar on stderr.
pub(crate) struct Bar {
    title: String,
    shown: bool,
    state: Mutex<State>,
}

struct State {
    total: u64,
    done: u64,
    drawn: Option<Instant>,
}

impl Bar {
    pub(crate) fn new(title: &str) -> Self {
        let state = Mutex::new(State { total: 0, done: 0, drawn: None });
        Self { title: title.to_owned(), shown: std::io::stderr().is_terminal(), state }
    }

    /// Takes the line away.
    pub(crate) fn finish(&self) {
        if self.shown {
            let _ = write!(std::io::stderr(), "\r\u{1b}[K");
        }
    }

    fn update(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        change(&mut state);
        if self.shown && state.drawn.is_none_or(|at| at.elapsed() >= REDRAW) {
            state.drawn = Some(Instant::now());
            // A terminal that is gone is no reason to stop the work.
            let _ = write!(std::io::stderr(), "\r\u{1b}[K{}", line(&self.title, state.done, state.total));
        }
    }
}

fn line(title: &str, done: u64, total: u64) -> String {
    if total == 0 {
        return format!("{title} {}", table::bytes(done));
    }
    let filled = usize::try_from(done.min(total) * WIDTH / total).unwrap_or_default();
    let bar = "=".repeat(filled);
    let width = usize::try_from(WIDTH).unwrap_or_default();
    format!("{title} [{bar:<width$}] {} of {}", table::bytes(done), table::bytes(total))
}

impl Progress for Bar {
    fn total(&self, bytes: u64) {
        self.update(|state| state.total = bytes);
    }

    fn advance(&self, bytes: u64) {
        self.update(|state| state.done = state.done.saturating_add(bytes));
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.finish();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines() {
        assert_eq!(line("pulling a", 500, 0), "pulling a 500 B");
        assert_eq!(line("x", 500, 1000), format!("x [{:<30}] 500 B of 1.0 kB", "=".repeat(15)));
        assert_eq!(line("x", 2000, 1000), format!("x [{}] 2.0 kB of 1.0 kB", "=".repeat(30)));
    }
}
