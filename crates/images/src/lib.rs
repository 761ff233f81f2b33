//! Content-addressed image store: import, unpack, build.
