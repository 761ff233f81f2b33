//! What may happen next to an upload: a pure core, without files, clocks and requests.
//!
//! ```text
//!            Begin (in order, within the cap)
//!    Idle ────────────────────────────────────► Receiving
//!     ▲  ◄──────────────────────────────────────── │  │
//!     │        Ended (all, or as far as it came)      │ Lost (the file is gone)
//!     │ Finish, Cancel, Tick (idle for too long)      ▼
//!     └──────────────────────────────────────────► Closed
//! ```
//!
//! One request writes at a time. An upload that broke off stays, and goes on where it is. What is closed stays closed.

use std::time::Duration;

/// Caps of uploads.
#[derive(Clone, Debug)]
pub struct UploadLimits {
    /// Most bytes of one blob.
    pub blob_bytes: u64,
    /// Most uploads that are open at a time.
    pub sessions: usize,
    /// An upload to which nothing is sent for so long is forgotten.
    pub idle: Duration,
    /// A request that sends nothing for so long is ended; its upload stays.
    pub stall: Duration,
}

impl Default for UploadLimits {
    fn default() -> Self {
        let (idle, stall) = (Duration::from_secs(900), Duration::from_secs(60));
        Self { blob_bytes: 32 << 30, sessions: 512, idle, stall }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Idle,
    Receiving { most: u64, exact: bool },
    Closed,
}

/// An upload: how far it is, and who may write.
#[derive(Clone, Debug)]
pub(crate) struct Upload {
    state: State,
    received: u64,
    touched: Duration,
}

/// Something that happens to an upload. Times are since some fixed moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// A request wants to write: first and last byte if it says so, and its length if it says so.
    Begin { range: Option<(u64, u64)>, length: Option<u64> },
    /// The request is over, and brought so many bytes.
    Ended { bytes: u64 },
    /// The request is over, and the file cannot be used any more.
    Lost,
    /// The client says that this is all.
    Finish,
    /// The client does not want it any more.
    Cancel,
    /// Time passes.
    Tick,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Write what comes, so many bytes at the most.
    Receive { most: u64 },
    /// Nothing: the upload waits for more.
    Wait,
    /// Compare the digest, and publish or discard.
    Verify,
    /// Remove the file and forget the upload.
    Discard,
}

/// Why an event is refused. The upload stays as it was, unless said otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// Another request writes, or the upload is over.
    Busy,
    /// The chunk does not begin where the last one ended.
    OutOfOrder { next: u64 },
    /// More than a blob may have.
    TooLarge { most: u64 },
    /// The length is not what the range says, or what was announced did not come. What came is kept.
    Length { expected: u64, found: u64 },
}

impl Upload {
    pub(crate) fn new(now: Duration) -> Self {
        Self { state: State::Idle, received: 0, touched: now }
    }

    /// Bytes that are there.
    pub(crate) fn received(&self) -> u64 {
        self.received
    }

    /// Takes the one step that `event` asks for.
    pub(crate) fn apply(
        &mut self,
        event: Event,
        now: Duration,
        limits: &UploadLimits,
    ) -> Result<Effect, Refused> {
        match (self.state, event) {
            (State::Idle, Event::Begin { range, length }) => self.begin(range, length, now, limits),
            (State::Receiving { most, exact }, Event::Ended { bytes }) => {
                self.received += bytes.min(most);
                self.touched = now;
                self.state = State::Idle;
                match bytes > most || (exact && bytes != most) {
                    true => Err(Refused::Length { expected: most, found: bytes }),
                    false => Ok(Effect::Wait),
                }
            }
            (State::Receiving { .. }, Event::Lost) | (State::Idle, Event::Cancel) => {
                self.state = State::Closed;
                Ok(Effect::Discard)
            }
            (State::Idle, Event::Finish) => {
                self.state = State::Closed;
                Ok(Effect::Verify)
            }
            (State::Idle, Event::Tick) if now.saturating_sub(self.touched) >= limits.idle => {
                self.state = State::Closed;
                Ok(Effect::Discard)
            }
            (_, Event::Tick) => Ok(Effect::Wait),
            (State::Receiving { .. }, Event::Begin { .. } | Event::Finish | Event::Cancel)
            | (State::Idle, Event::Ended { .. } | Event::Lost)
            | (State::Closed, _) => Err(Refused::Busy),
        }
    }

    fn begin(
        &mut self,
        range: Option<(u64, u64)>,
        length: Option<u64>,
        now: Duration,
        limits: &UploadLimits,
    ) -> Result<Effect, Refused> {
        let ranged = match range {
            None => None,
            Some((first, last)) if first != self.received || last < first => {
                return Err(Refused::OutOfOrder { next: self.received });
            }
            Some((first, last)) => Some((last - first).saturating_add(1)),
        };
        if let (Some(expected), Some(found)) = (ranged, length)
            && expected != found
        {
            return Err(Refused::Length { expected, found });
        }
        let left = limits.blob_bytes.saturating_sub(self.received);
        let announced = ranged.or(length);
        if announced.is_some_and(|bytes| bytes > left) {
            return Err(Refused::TooLarge { most: limits.blob_bytes });
        }
        let most = announced.unwrap_or(left);
        self.state = State::Receiving { most, exact: announced.is_some() };
        self.touched = now;
        Ok(Effect::Receive { most })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMITS: UploadLimits = UploadLimits {
        blob_bytes: 100,
        sessions: 2,
        idle: Duration::from_secs(10),
        stall: Duration::from_secs(1),
    };

    fn begin(range: Option<(u64, u64)>, length: Option<u64>) -> Event {
        Event::Begin { range, length }
    }

    #[test]
    fn steps() {
        type Step = (Event, Result<Effect, Refused>);
        let check = |case: &str, steps: &[Step], received: u64| {
            let mut upload = Upload::new(Duration::ZERO);
            for (i, (event, expected)) in steps.iter().enumerate() {
                let found = upload.apply(*event, Duration::from_secs(i as u64), &LIMITS);
                assert_eq!(found, *expected, "{case}: step {i}");
            }
            assert_eq!(upload.received(), received, "{case}");
        };
        let most = |most| Ok(Effect::Receive { most });
        check(
            "one stream",
            &[
                (begin(None, None), most(100)),
                (Event::Ended { bytes: 7 }, Ok(Effect::Wait)),
                (Event::Finish, Ok(Effect::Verify)),
                (Event::Finish, Err(Refused::Busy)),
                (begin(None, None), Err(Refused::Busy)),
            ],
            7,
        );
        check(
            "chunks in order",
            &[
                (begin(Some((0, 9)), Some(10)), most(10)),
                (Event::Ended { bytes: 10 }, Ok(Effect::Wait)),
                (begin(Some((0, 9)), Some(10)), Err(Refused::OutOfOrder { next: 10 })),
                (begin(Some((11, 12)), None), Err(Refused::OutOfOrder { next: 10 })),
                (begin(Some((10, 9)), None), Err(Refused::OutOfOrder { next: 10 })),
                (begin(Some((10, 12)), Some(2)), Err(Refused::Length { expected: 3, found: 2 })),
                (begin(Some((10, 12)), None), most(3)),
                (Event::Ended { bytes: 2 }, Err(Refused::Length { expected: 3, found: 2 })),
                (begin(Some((12, 12)), None), most(1)),
            ],
            12,
        );
        check(
            "caps",
            &[
                (begin(None, Some(101)), Err(Refused::TooLarge { most: 100 })),
                (begin(Some((0, 100)), None), Err(Refused::TooLarge { most: 100 })),
                (begin(Some((0, u64::MAX)), None), Err(Refused::TooLarge { most: 100 })),
                (begin(None, Some(60)), most(60)),
                (begin(None, Some(1)), Err(Refused::Busy)),
                (Event::Finish, Err(Refused::Busy)),
                (Event::Cancel, Err(Refused::Busy)),
                (Event::Ended { bytes: 60 }, Ok(Effect::Wait)),
                (begin(None, None), most(40)),
                (Event::Lost, Ok(Effect::Discard)),
                (Event::Cancel, Err(Refused::Busy)),
            ],
            60,
        );
        check("cancel", &[(Event::Cancel, Ok(Effect::Discard)), (Event::Tick, Ok(Effect::Wait))], 0);
    }

    #[test]
    fn idle_uploads_end_and_busy_ones_do_not() {
        let mut upload = Upload::new(Duration::ZERO);
        assert_eq!(upload.apply(Event::Tick, Duration::from_secs(9), &LIMITS), Ok(Effect::Wait));
        upload.apply(begin(None, None), Duration::from_secs(9), &LIMITS).expect("begin");
        assert_eq!(upload.apply(Event::Tick, Duration::from_secs(99), &LIMITS), Ok(Effect::Wait));
        upload.apply(Event::Ended { bytes: 0 }, Duration::from_secs(99), &LIMITS).expect("end");
        assert_eq!(upload.apply(Event::Tick, Duration::from_secs(108), &LIMITS), Ok(Effect::Wait));
        assert_eq!(upload.apply(Event::Tick, Duration::from_secs(109), &LIMITS), Ok(Effect::Discard));
    }

    fn any_event() -> impl Strategy<Value = Event> {
        let number = 0_u64..130;
        prop_oneof![
            (prop::option::of((number.clone(), number.clone())), prop::option::of(number.clone()))
                .prop_map(|(range, length)| Event::Begin { range, length }),
            number.prop_map(|bytes| Event::Ended { bytes }),
            Just(Event::Lost),
            Just(Event::Finish),
            Just(Event::Cancel),
            Just(Event::Tick),
        ]
    }

    proptest! {
        /// Whatever comes: never beyond the cap, never backwards, one writer, verified or discarded at most once.
        #[test]
        fn any_order_of_events(events in prop::collection::vec((any_event(), 0_u64..8), 0..40)) {
            let (mut upload, mut now) = (Upload::new(Duration::ZERO), Duration::ZERO);
            let (mut writing, mut over) = (None, 0);
            for (event, pause) in events {
                now += Duration::from_secs(pause);
                let before = upload.received();
                let effect = upload.apply(event, now, &LIMITS);
                prop_assert!(upload.received() >= before && upload.received() <= LIMITS.blob_bytes);
                match (event, effect) {
                    (_, Ok(Effect::Receive { most })) => {
                        prop_assert!(writing.is_none() && over == 0);
                        prop_assert!(before + most <= LIMITS.blob_bytes);
                        writing = Some(most);
                    }
                    (_, Ok(Effect::Verify | Effect::Discard)) => {
                        prop_assert!(event == Event::Lost || writing.is_none());
                        over += 1;
                        writing = None;
                    }
                    (Event::Ended { bytes }, _) if writing.is_some() => {
                        prop_assert_eq!(upload.received(), before + bytes.min(writing.unwrap_or(0)));
                        writing = None;
                    }
                    _ => prop_assert_eq!(upload.received(), before),
                }
                prop_assert!(over <= 1);
            }
        }
    }
}
