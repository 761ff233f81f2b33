//! The query parameters of requests.

use crate::route::decode;
use cumulet_api::Status;
use std::borrow::Cow;

/// The parameters of one request, decoded, in order.
#[derive(Default)]
pub(crate) struct Query<'a> {
    pairs: Vec<(Cow<'a, str>, Cow<'a, str>)>,
}

impl<'a> Query<'a> {
    pub(crate) fn parse(text: Option<&'a str>) -> Self {
        let Some(text) = text else { return Self::default() };
        let pairs = text
            .split('&')
            .filter(|pair| !pair.is_empty())
            .map(|pair| {
                let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                (unescape(name), unescape(value))
            })
            .collect();
        Self { pairs }
    }

    /// The first value of a parameter; empty counts as absent, as it does in Kubernetes.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.pairs.iter().find(|(n, _)| n == name).map(|(_, v)| &**v).filter(|v| !v.is_empty())
    }

    /// All values of a parameter.
    pub(crate) fn all<'s>(&'s self, name: &'s str) -> impl Iterator<Item = &'s str> {
        self.pairs.iter().filter(move |(n, _)| n == name).map(|(_, v)| &**v)
    }

    /// A flag: present and neither `false` nor `0`.
    pub(crate) fn flag(&self, name: &str) -> bool {
        self.optional_flag(name).unwrap_or(false)
    }

    /// A flag that may be absent.
    pub(crate) fn optional_flag(&self, name: &str) -> Option<bool> {
        self.pairs.iter().find(|(n, _)| n == name).map(|(_, v)| !matches!(&**v, "false" | "0"))
    }

    /// A number, or 400.
    pub(crate) fn number<T: std::str::FromStr>(&self, name: &str) -> Result<Option<T>, Status> {
        self.get(name)
            .map(|text| {
                text.parse().map_err(|_| {
                    Status::bad_request(format!(
                        "strconv.ParseInt: parsing {text:?}: invalid syntax ({name})"
                    ))
                })
            })
            .transpose()
    }

    /// True when the request must change nothing. Only `All` is a known value.
    pub(crate) fn dry_run(&self) -> Result<bool, Status> {
        let mut any = false;
        for value in self.all("dryRun") {
            if value != "All" {
                return Err(Status::bad_request(format!(
                    "dryRun: Unsupported value: {value:?}: supported values: \"All\""
                )));
            }
            any = true;
        }
        Ok(any)
    }
}

fn unescape(text: &str) -> Cow<'_, str> {
    if text.contains('+') { Cow::Owned(decode(&text.replace('+', " ")).into_owned()) } else { decode(text) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters() {
        let query = Query::parse(Some(
            "labelSelector=a%3Db%2Cc+in+%28d%29&watch=true&limit=5&command=sh&command=-c&x=",
        ));
        assert_eq!(query.get("labelSelector"), Some("a=b,c in (d)"));
        assert!(query.flag("watch") && !query.flag("follow"));
        assert_eq!(query.number::<u64>("limit").unwrap(), Some(5));
        assert_eq!(query.all("command").collect::<Vec<_>>(), ["sh", "-c"]);
        assert_eq!(query.get("x"), None);
        assert!(!query.dry_run().unwrap());
        assert!(Query::parse(Some("dryRun=Some")).dry_run().is_err());
        assert!(Query::parse(Some("dryRun=All")).dry_run().unwrap());
        assert!(Query::parse(Some("limit=x")).number::<u64>("limit").is_err());
    }
}
