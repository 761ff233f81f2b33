//! What QEMU says of a machine that is saved.

use cumulet_vmm::machine::stream::without_memory;

/// Size of the guest's memory in the seeds.
const MEMORY_BYTES: u64 = 16 * 4096;

/// What comes out has no page of the memory any more: taking it out once more changes nothing.
pub(crate) fn stream(data: &[u8]) {
    let mut once = Vec::new();
    if without_memory(data, &mut once, MEMORY_BYTES).is_ok() {
        let mut twice = Vec::new();
        without_memory(&once[..], &mut twice, MEMORY_BYTES).expect("a stream without memory is a stream");
        assert_eq!(once, twice);
    }
}
