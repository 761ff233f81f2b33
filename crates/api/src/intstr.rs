//! `IntOrString`: a port by number or name, a count or a percentage.

use serde_json::Value;

/// Either a number or a string, borrowed from an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IntOrString<'a> {
    /// A number.
    Int(i64),
    /// A name or a percentage.
    String(&'a str),
}

impl<'a> IntOrString<'a> {
    /// Reads the JSON form; `None` for anything else.
    pub fn of(value: &'a Value) -> Option<Self> {
        match value {
            Value::Number(n) => n.as_i64().map(Self::Int),
            Value::String(s) => Some(Self::String(s)),
            _ => None,
        }
    }

    /// The number that this stands for out of `total`: itself, or the percentage of `total` rounded up or down.
    /// `None` for a string that is not a percentage.
    pub fn scaled(self, total: i64, round_up: bool) -> Option<i64> {
        match self {
            Self::Int(n) => Some(n),
            Self::String(s) => {
                let percent: i64 = s.strip_suffix('%')?.parse().ok()?;
                let product = percent.checked_mul(total)?;
                Some(if round_up { (product + 99).div_euclid(100) } else { product.div_euclid(100) })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentages_round_both_ways() {
        for (text, total, up, down) in
            [("25%", 3, 1, 0), ("25%", 4, 1, 1), ("0%", 9, 0, 0), ("100%", 9, 9, 9)]
        {
            assert_eq!(IntOrString::String(text).scaled(total, true), Some(up));
            assert_eq!(IntOrString::String(text).scaled(total, false), Some(down));
        }
        assert_eq!(IntOrString::Int(7).scaled(1, true), Some(7));
        assert_eq!(IntOrString::String("http").scaled(1, true), None);
    }
}
