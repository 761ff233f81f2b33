//! Doors for fuzzing: what strangers send to the registry client and endpoint, read as it is read there. Each panics
//! when something does not hold that has to.

use super::client::challenge;
use super::client::config::RegistriesConfig;
use super::client::keyring::Keyring;
use super::endpoint::upload::{Effect, Event, Upload, UploadLimits};
use crate::document::{Document, Kind, check_layer_type, is_foreign};
use std::path::Path;
use std::time::Duration;

/// A manifest or index: what is accepted is one thing only, and can be read again.
pub fn manifest(bytes: &[u8]) {
    let Ok(document) = Document::parse(bytes) else { return };
    let list = document.kind() == Kind::Index;
    assert_eq!(document.config().is_none(), list, "an index has no configuration, all else has one");
    assert!(!list || document.layers().is_empty(), "an index has no layers");
    assert!(list || document.children().is_empty(), "only an index has manifests");
    assert!(!document.media_type().is_empty(), "everything is exchanged under some media type");
    for layer in document.layers() {
        let _ = (is_foreign(layer), check_layer_type(layer));
    }
    let _ = (document.artifact_type(), document.subject(), document.platforms());
    if let Some(child) = document.for_here() {
        assert!(document.children().iter().any(|known| known.digest == child.digest));
    }
}

/// `WWW-Authenticate` of a registry.
pub fn challenge(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    for found in challenge::parse(text) {
        if let challenge::Challenge::Bearer { realm, .. } = found {
            assert!(realm.len() <= text.len(), "a realm comes out of the header");
        }
    }
}

/// A pull secret: an error is one harmless line.
pub fn docker_config(bytes: &[u8]) {
    if let Err(error) = Keyring::from_docker_config(bytes) {
        assert!(!error.to_string().chars().any(char::is_control), "{error:?}");
    }
}

/// The file with mirrors and insecure registries: what is accepted can be used.
pub fn registries(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(config) = RegistriesConfig::parse(Path::new("registries.yaml"), text) {
        for registry in config.mirrors.keys() {
            let sources = config.sources(registry).expect("what was accepted can be used");
            assert!(sources.iter().all(|source| source.uri("a/manifests/1").is_ok()), "{config:?}");
        }
    }
}

/// A path of a request to the endpoint.
pub fn route(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    super::endpoint::fuzz_route(text);
}

/// What happens to an upload, one event for each four bytes: never beyond the cap, never backwards, one writer,
/// verified or discarded at most once.
pub fn upload(bytes: &[u8]) {
    let limits = UploadLimits {
        blob_bytes: 4096,
        sessions: 2,
        idle: Duration::from_secs(20),
        stall: Duration::from_secs(1),
    };
    let (mut upload, mut now) = (Upload::new(Duration::ZERO), Duration::ZERO);
    let (mut writing, mut over) = (None, false);
    for step in bytes.chunks_exact(4) {
        now += Duration::from_secs(u64::from(step[0] >> 4));
        let before = upload.received();
        let event = event(step, before);
        let effect = upload.apply(event, now, &limits);
        assert!(upload.received() >= before && upload.received() <= limits.blob_bytes, "{event:?}");
        match (event, effect) {
            (_, Ok(Effect::Receive { most })) => {
                assert!(writing.is_none() && !over && before + most <= limits.blob_bytes, "{event:?}");
                writing = Some(most);
            }
            (_, Ok(Effect::Verify | Effect::Discard)) => {
                assert!(!over && (event == Event::Lost || writing.is_none()), "{event:?}");
                (over, writing) = (true, None);
            }
            (Event::Ended { bytes }, _) => {
                let moved = writing.take().map_or(0, |most| bytes.min(most));
                assert_eq!(upload.received(), before + moved, "{event:?}");
            }
            _ => assert_eq!(upload.received(), before, "{event:?}"),
        }
    }
}

/// Four bytes as an event: most numbers near those that matter.
fn event(step: &[u8], received: u64) -> Event {
    let number = |byte: u8| match byte >> 6 {
        0 => received.wrapping_add(u64::from(byte & 63)).wrapping_sub(8),
        1 => u64::from(byte & 63),
        2 => 4096_u64.wrapping_add(u64::from(byte & 63)).wrapping_sub(32),
        _ => u64::MAX - u64::from(byte & 63),
    };
    let (a, b) = (number(step[1]), number(step[2]));
    match step[0] & 7 {
        0 => Event::Begin { range: None, length: None },
        1 => Event::Begin { range: None, length: Some(a) },
        2 => Event::Begin { range: Some((a, b)), length: None },
        3 => Event::Begin { range: Some((a, b)), length: Some(number(step[3])) },
        4 => Event::Ended { bytes: a },
        5 => Event::Lost,
        6 => {
            if step[3] & 1 == 0 {
                Event::Finish
            } else {
                Event::Cancel
            }
        }
        _ => Event::Tick,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn hold(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200), text in "\\PC{0,60}") {
            upload(&bytes);
            for door in [manifest, challenge, docker_config, registries, route] {
                door(text.as_bytes());
            }
        }
    }
}
