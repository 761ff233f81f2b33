//! What the client wants to get: a reading of the `Accept` header.
//!
//! Media types are tried in the client's order (by quality, then as listed). Protobuf answers are not offered, so a
//! client that asks for protobuf or JSON gets JSON.

use cumulet_api::{Status, StatusReason};
use http::HeaderMap;
use http::header::ACCEPT;

/// How an answer is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Encoding {
    Json,
    Yaml,
}

/// What an answer shows of the objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// The objects themselves.
    Objects,
    /// `meta.k8s.io/v1` Table.
    Table,
    /// `meta.k8s.io/v1` PartialObjectMetadata, or its list.
    Metadata,
    /// `apidiscovery.k8s.io/v2` APIGroupDiscoveryList.
    Discovery,
}

/// An accepted form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Accepted {
    pub(crate) encoding: Encoding,
    pub(crate) shape: Shape,
}

impl Accepted {
    pub(crate) const JSON: Self = Self { encoding: Encoding::Json, shape: Shape::Objects };

    /// True when stored bytes can be sent as they are.
    pub(crate) fn is_plain(self) -> bool {
        self == Self::JSON
    }
}

/// The first form that the client accepts and `offered` allows, or 406.
pub(crate) fn negotiate(headers: &HeaderMap, offered: fn(Shape) -> bool) -> Result<Accepted, Status> {
    let Some(accept) = headers.get(ACCEPT) else { return Ok(Accepted::JSON) };
    let accept = accept.to_str().unwrap_or_default();
    // What nearly every client library sends, without any work.
    if accept.is_empty() || accept == "application/json" || accept == "*/*" {
        return Ok(Accepted::JSON);
    }
    let mut ranges: Vec<(u16, &str)> =
        accept.split(',').map(|range| (quality(range), range.trim())).collect();
    ranges.sort_by_key(|(quality, _)| std::cmp::Reverse(*quality));
    ranges
        .into_iter()
        .filter(|(quality, _)| *quality > 0)
        .find_map(|(_, range)| read(range).filter(|accepted| offered(accepted.shape)))
        .ok_or_else(|| {
            Status::new(
                StatusReason::NotAcceptable,
                "only the following media types are accepted: application/json, application/yaml",
            )
        })
}

/// Forms of objects and lists of them.
pub(crate) fn objects(shape: Shape) -> bool {
    shape != Shape::Discovery
}

/// Forms of what is no API object of a row.
pub(crate) fn plain(shape: Shape) -> bool {
    shape == Shape::Objects
}

/// Forms of the discovery roots.
pub(crate) fn discovery(shape: Shape) -> bool {
    matches!(shape, Shape::Objects | Shape::Discovery)
}

fn read(range: &str) -> Option<Accepted> {
    let mut parts = range.split(';').map(str::trim);
    let encoding = match parts.next()? {
        "application/json" | "*/*" | "application/*" => Encoding::Json,
        "application/yaml" => Encoding::Yaml,
        _ => return None,
    };
    let (mut group, mut version, mut kind) = ("", "", "");
    for part in parts {
        match part.split_once('=') {
            Some(("g", value)) => group = value,
            Some(("v", value)) => version = value,
            Some(("as", value)) => kind = value,
            _ => {}
        }
    }
    let shape = match (kind, group, version) {
        ("", _, _) => Shape::Objects,
        ("Table", "meta.k8s.io", "v1") => Shape::Table,
        ("PartialObjectMetadata" | "PartialObjectMetadataList", "meta.k8s.io", "v1") => Shape::Metadata,
        ("APIGroupDiscoveryList", "apidiscovery.k8s.io", "v2") => Shape::Discovery,
        _ => return None,
    };
    Some(Accepted { encoding, shape })
}

/// The quality of a media range in thousandths.
fn quality(range: &str) -> u16 {
    let text = range.split(';').find_map(|part| part.trim().strip_prefix("q="));
    let Some(quality) = text.and_then(|text| text.parse::<f32>().ok()) else { return 1000 };
    // In range, so neither truncated nor negative.
    (quality.clamp(0.0, 1.0) * 1000.0) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(accept: &str, want: Option<(Encoding, Shape)>) {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, accept.parse().unwrap());
        let got = negotiate(&headers, objects).ok().map(|a| (a.encoding, a.shape));
        assert_eq!(got, want, "{accept}");
    }

    #[test]
    fn accept_headers() {
        use Encoding::{Json, Yaml};
        use Shape::{Metadata, Objects, Table};
        check("application/json", Some((Json, Objects)));
        check(
            "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json",
            Some((Json, Table)),
        );
        check("application/json;as=Table;v=v1beta1;g=meta.k8s.io, application/json", Some((Json, Objects)));
        check("application/vnd.kubernetes.protobuf,application/json", Some((Json, Objects)));
        check("application/vnd.kubernetes.protobuf", None);
        check("application/vnd.kubernetes.protobuf, */*", Some((Json, Objects)));
        check("application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1", Some((Json, Metadata)));
        check("application/json;q=0.5, application/yaml", Some((Yaml, Objects)));
        check("text/html", None);
        check(
            "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json",
            Some((Json, Objects)),
        );
    }
}
