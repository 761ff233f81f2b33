//! Pod lifecycle as a pure state machine: state and event to state and effects; no I/O, no clock.
