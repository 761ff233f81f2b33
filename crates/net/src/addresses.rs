//! Pod addresses: an allocator over one IPv4 range.
//!
//! In memory only: whoever starts again reserves the addresses that are in use. Addresses are handed out round-robin,
//! so that one that was just released is not used again soon (stale connections and caches of others point at it).

use crate::Error;
use ipnet::Ipv4Net;
use std::net::Ipv4Addr;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Network address and gateway stand at the beginning of the range.
const FIRST: u32 = 2;

/// Thread-safe allocator.
#[derive(Debug)]
pub struct Addresses {
    cidr: Ipv4Net,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// One bit per address of the range.
    used: Vec<u64>,
    next: u32,
}

impl Addresses {
    /// An allocator for all addresses of the range except network, gateway (the first) and broadcast.
    ///
    /// # Errors
    /// A range that is larger than /8 or smaller than /29.
    pub fn new(cidr: Ipv4Net) -> Result<Self, Error> {
        if !(8..=29).contains(&cidr.prefix_len()) {
            return Err(Error::Invalid(format!("the pod range {cidr} must be between /8 and /29")));
        }
        let cidr = cidr.trunc();
        let words = (size(cidr) as usize).div_ceil(64);
        Ok(Self { cidr, state: Mutex::new(State { used: vec![0; words], next: FIRST }) })
    }

    /// The range.
    pub fn cidr(&self) -> Ipv4Net {
        self.cidr
    }

    /// Takes a free address.
    ///
    /// # Errors
    /// [`Error::Exhausted`].
    pub fn allocate(&self) -> Result<Ipv4Addr, Error> {
        let end = size(self.cidr) - 1;
        let mut state = self.lock();
        let start = state.next;
        let free = (start..end).chain(FIRST..start).find(|offset| !state.is_used(*offset));
        let offset = free.ok_or(Error::Exhausted(self.cidr))?;
        state.take(offset, end);
        Ok(Ipv4Addr::from(u32::from(self.cidr.network()) + offset))
    }

    /// Takes a given address; false when it is already taken or cannot be a pod's.
    pub fn reserve(&self, address: Ipv4Addr) -> bool {
        let end = size(self.cidr) - 1;
        let Some(offset) = self.offset(address) else { return false };
        let mut state = self.lock();
        if state.is_used(offset) {
            return false;
        }
        state.take(offset, end);
        true
    }

    /// Gives an address back. One that is not taken, or not of this range, is ignored.
    pub fn release(&self, address: Ipv4Addr) {
        if let Some(offset) = self.offset(address) {
            self.lock().used[(offset / 64) as usize] &= !(1 << (offset % 64));
        }
    }

    fn offset(&self, address: Ipv4Addr) -> Option<u32> {
        let offset = u32::from(address).checked_sub(u32::from(self.cidr.network()))?;
        (FIRST..size(self.cidr) - 1).contains(&offset).then_some(offset)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn is_used(&self, offset: u32) -> bool {
        self.used[(offset / 64) as usize] & (1 << (offset % 64)) != 0
    }

    fn take(&mut self, offset: u32, end: u32) {
        self.used[(offset / 64) as usize] |= 1 << (offset % 64);
        self.next = if offset + 1 < end { offset + 1 } else { FIRST };
    }
}

fn size(cidr: Ipv4Net) -> u32 {
    1 << (32 - cidr.prefix_len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(cidr: &str) -> Addresses {
        Addresses::new(cidr.parse().unwrap()).unwrap()
    }

    #[test]
    fn hands_out_round_robin_and_skips_special_addresses() {
        let all = addresses("10.0.0.0/29");
        let taken: Vec<String> = (0..5).map(|_| all.allocate().unwrap().to_string()).collect();
        assert_eq!(taken, ["10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6"]);
        assert!(matches!(all.allocate(), Err(Error::Exhausted(_))));
        all.release("10.0.0.3".parse().unwrap());
        assert_eq!(all.allocate().unwrap().to_string(), "10.0.0.3");
    }

    #[test]
    fn a_released_address_is_not_next() {
        let all = addresses("10.0.0.0/24");
        let first = all.allocate().unwrap();
        all.release(first);
        assert_ne!(all.allocate().unwrap(), first);
    }

    #[test]
    fn reserves() {
        let all = addresses("10.0.0.0/24");
        let check = |address: &str, expected| {
            assert_eq!(all.reserve(address.parse().unwrap()), expected, "{address}")
        };
        check("10.0.0.2", true);
        check("10.0.0.2", false);
        check("10.0.0.0", false);
        check("10.0.0.1", false);
        check("10.0.0.255", false);
        check("10.0.1.7", false);
        check("9.255.255.255", false);
        assert_eq!(all.allocate().unwrap().to_string(), "10.0.0.3");
    }

    #[test]
    fn refuses_absurd_ranges() {
        for cidr in ["10.0.0.0/30", "0.0.0.0/0", "10.0.0.1/32"] {
            assert!(Addresses::new(cidr.parse().unwrap()).is_err(), "{cidr}");
        }
    }
}
