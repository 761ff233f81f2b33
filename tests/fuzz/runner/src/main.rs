//! libFuzzer's program: which target it feeds is said by `FUZZ_TARGET`, so that one program serves all.
#![no_main]

use std::sync::LazyLock;

static TARGET: LazyLock<cumulet_fuzz::Target> = LazyLock::new(|| {
    let wanted = std::env::var("FUZZ_TARGET").unwrap_or_default();
    let found = cumulet_fuzz::TARGETS.iter().find(|(name, _)| *name == wanted);
    let Some((_, target)) = found else {
        let names: Vec<&str> = cumulet_fuzz::TARGETS.iter().map(|(name, _)| *name).collect();
        eprintln!("FUZZ_TARGET must be one of: {}", names.join(", "));
        std::process::exit(2);
    };
    *target
});

libfuzzer_sys::fuzz_target!(|data: &[u8]| TARGET(data));
