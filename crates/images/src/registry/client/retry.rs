//! When to try again: with growing, jittered pauses, and never what cannot succeed.

use super::error::Failure;
use rand::RngExt;
use std::time::Duration;

/// Longest pause that a registry may ask for; who wants more is asked again by whoever wanted the image.
const MAX_ASKED: Duration = Duration::from_secs(60);
/// Longest pause of our own.
const MAX_PAUSE: Duration = Duration::from_secs(10);

/// The attempts of one request.
#[derive(Debug)]
pub(super) struct Retry {
    left: u32,
    most: u32,
    first: Duration,
    pause: Duration,
}

impl Retry {
    pub(super) fn new(attempts: u32, first: Duration) -> Self {
        Self { left: attempts, most: attempts, first, pause: first }
    }

    /// Starts counting anew: what was done moved things forward.
    pub(super) fn reset(&mut self) {
        (self.left, self.pause) = (self.most, self.first);
    }

    /// How long to wait before the next attempt; none when there is to be no other.
    fn next(&mut self, failure: &Failure) -> Option<Duration> {
        self.left = self.left.saturating_sub(1);
        if self.left == 0 || !failure.is_transient() {
            return None;
        }
        let asked = match failure {
            Failure::Status { retry_after, .. } => *retry_after,
            _ => None,
        };
        let pause = self.pause;
        self.pause = (pause * 2).min(MAX_PAUSE);
        match asked {
            Some(asked) if asked > MAX_ASKED => None,
            Some(asked) => Some(asked.max(pause)),
            // Between half and all of it, so that those who failed together do not come back together.
            None => Some(pause.mul_f64(rand::rng().random_range(0.5..=1.0))),
        }
    }

    /// Waits before the next attempt, or hands the failure back.
    pub(super) async fn after(&mut self, failure: Failure) -> Result<(), Failure> {
        match self.next(&failure) {
            Some(pause) => {
                tracing::debug!(?failure, ?pause, "a registry is tried again");
                tokio::time::sleep(pause).await;
                Ok(())
            }
            None => Err(failure),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::StatusCode;

    fn status(code: u16, retry_after: Option<u64>) -> Failure {
        let retry_after = retry_after.map(Duration::from_secs);
        let status = StatusCode::from_u16(code).expect("status");
        Failure::Status { status, words: String::new(), retry_after }
    }

    #[test]
    fn pauses() {
        let mut retry = Retry::new(4, Duration::from_secs(4));
        let check = |pause: Option<Duration>, from: u64, to: u64| {
            let pause = pause.expect("another attempt").as_millis();
            assert!((u128::from(from) * 1000..=u128::from(to) * 1000).contains(&pause), "{pause}");
        };
        check(retry.next(&Failure::Connection(String::new())), 2, 4);
        check(retry.next(&status(503, None)), 4, 8);
        check(retry.next(&status(429, Some(20))), 20, 20);
        assert_eq!(retry.next(&status(503, None)), None);
        retry.reset();
        check(retry.next(&status(503, None)), 2, 4);
        assert_eq!(retry.next(&status(429, Some(600))), None);
        assert_eq!(retry.next(&status(404, None)), None);
        assert_eq!(Retry::new(1, Duration::ZERO).next(&status(503, None)), None);
    }
}
