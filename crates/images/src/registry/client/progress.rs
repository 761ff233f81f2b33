//! How far a pull or push is.

use crate::Digest;

/// Is told how a pull or push goes on, from several tasks at once. Every method may be left out; none may block.
pub trait Progress: Send + Sync {
    /// How many bytes there are in all, told once they are known.
    fn total(&self, bytes: u64) {
        let _ = bytes;
    }

    /// So many more bytes are done: moved, or there already. In the end the sum is the total.
    fn advance(&self, bytes: u64) {
        let _ = bytes;
    }

    /// A configuration or layer is done; `moved` unless it was there already.
    fn done(&self, digest: &Digest, moved: bool) {
        let _ = (digest, moved);
    }
}

/// For who does not want to know.
impl Progress for () {}
