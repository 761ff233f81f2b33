//! The supervisor protocol: the node's own files.
#![expect(
    dead_code,
    unreachable_pub,
    reason = "the files belong to the node; only their decoders are used here"
)]

#[path = "../../../../crates/node/src/supervisor/frame.rs"]
pub(crate) mod frame;
#[path = "../../../../crates/node/src/supervisor/proto.rs"]
pub(crate) mod proto;
#[path = "../../../../crates/node/src/supervisor/vm.rs"]
pub(crate) mod vm;
