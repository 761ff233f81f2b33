//! Zones as data: names and their records.

use std::collections::HashMap;
use std::net::{Ipv4Addr, Ipv6Addr};

/// One record's data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Data {
    /// IPv4 address.
    A(Ipv4Addr),
    /// IPv6 address.
    Aaaa(Ipv6Addr),
    /// Another name.
    Cname(String),
    /// Name of an address.
    Ptr(String),
    /// A server for a port.
    Srv {
        /// Share among equals.
        weight: u16,
        /// Port.
        port: u16,
        /// Its name.
        target: String,
    },
    /// Text.
    Txt(String),
}

/// Everything that the server knows by itself. Names are lower case and without the dot at the end.
#[derive(Clone, Debug, Default)]
pub struct Zone {
    origins: Vec<String>,
    records: HashMap<String, Vec<Data>>,
    serial: u32,
}

/// What a zone says about a name.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Lookup<'z> {
    /// Nothing: it lies in no zone of ours.
    Foreign,
    /// It does not exist, below this origin.
    Missing(&'z str),
    /// It exists, with these records (none when it only has names below it).
    Found(&'z str, &'z [Data]),
}

impl Zone {
    /// A zone of all names below `origins`. Names outside of them are kept out.
    pub fn new(
        origins: Vec<String>,
        records: impl IntoIterator<Item = (String, Vec<Data>)>,
        serial: u32,
    ) -> Self {
        let mut zone = Self { origins, records: HashMap::new(), serial };
        for (name, data) in records {
            let Some(origin) = zone.origin_of(&name).map(str::len) else { continue };
            // Every name between this one and the origin exists too.
            let mut parent = name.as_str();
            while let Some((_, rest)) = parent.split_once('.').filter(|(_, rest)| rest.len() >= origin) {
                if zone.records.contains_key(rest) {
                    break;
                }
                zone.records.insert(rest.to_owned(), Vec::new());
                parent = rest;
            }
            zone.records.entry(name).or_default().extend(data);
        }
        for origin in zone.origins.clone() {
            zone.records.entry(origin).or_default();
        }
        zone
    }

    /// Serial number for the SOA record.
    pub fn serial(&self) -> u32 {
        self.serial
    }

    /// Whether a name has records.
    pub fn has(&self, name: &str) -> bool {
        self.records.get(name).is_some_and(|data| !data.is_empty())
    }

    pub(crate) fn lookup(&self, name: &str) -> Lookup<'_> {
        let Some(origin) = self.origin_of(name) else { return Lookup::Foreign };
        self.records.get(name).map_or(Lookup::Missing(origin), |data| Lookup::Found(origin, data))
    }

    fn origin_of(&self, name: &str) -> Option<&str> {
        let below = |origin: &&String| {
            name.strip_suffix(origin.as_str()).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
        };
        self.origins.iter().find(below).map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lookups() {
        let address = Data::A(Ipv4Addr::new(10, 0, 0, 1));
        let names =
            [("a.b.zone", vec![address.clone()]), ("empty.zone", vec![]), ("x.other", vec![address.clone()])];
        let records = names.map(|(name, data)| (name.to_owned(), data));
        let zone = Zone::new(vec!["zone".to_owned()], records, 1);
        let found = [address];
        let check = |name, expected| assert_eq!(zone.lookup(name), expected, "{name}");
        check("a.b.zone", Lookup::Found("zone", &found));
        check("b.zone", Lookup::Found("zone", &[]));
        check("zone", Lookup::Found("zone", &[]));
        check("empty.zone", Lookup::Found("zone", &[]));
        check("c.zone", Lookup::Missing("zone"));
        check("a.a.b.zone", Lookup::Missing("zone"));
        check("myzone", Lookup::Foreign);
        check("x.other", Lookup::Foreign);
        check("", Lookup::Foreign);
    }
}
