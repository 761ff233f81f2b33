//! JSON patch, merge patch and strategic merge patch over schema tables; no I/O.
