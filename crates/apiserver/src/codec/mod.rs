//! Between bytes on the wire and decoded objects.

pub(crate) mod decode;
pub(crate) mod encode;
pub(crate) mod negotiate;
pub(crate) mod table;
