//! Quantities: `500m`, `1Gi`, `1e3`, as `k8s.io/apimachinery/pkg/api/resource` reads and writes them.
//!
//! A quantity is kept as a whole number of nano-units, which is Kubernetes' finest precision; finer values are
//! rounded away from zero. The text of a quantity that was already canonical (by Kubernetes' rule of thumb, which
//! also lets `1.500` pass) is kept as it was written.
//!
//! Absent on purpose: numbers beyond 10^29, which Kubernetes holds in big integers; they are an error here.

use std::cmp::Ordering;
use std::fmt;

const NANO: i128 = 1_000_000_000;
/// Kubernetes' names of the binary and decimal suffixes, with their exponents.
const BINARY: [(&str, u32); 6] = [("Ki", 10), ("Mi", 20), ("Gi", 30), ("Ti", 40), ("Pi", 50), ("Ei", 60)];
const DECIMAL: [(&str, i32); 10] =
    [("n", -9), ("u", -6), ("m", -3), ("", 0), ("k", 3), ("M", 6), ("G", 9), ("T", 12), ("P", 15), ("E", 18)];

/// Which kind of suffix a quantity was written with and is printed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `12e6`
    DecimalExponent,
    /// `12Mi`
    BinarySi,
    /// `12M`
    DecimalSi,
}

/// Why a text is not a quantity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    /// Not a number with a suffix at all.
    #[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
    Format,
    /// The number is too large.
    #[error("unable to parse numeric part of quantity")]
    Numeric,
    /// The suffix is not one of Kubernetes' suffixes.
    #[error("unable to parse quantity's suffix")]
    Suffix,
}

/// A fixed-point number with a remembered kind of suffix.
#[derive(Clone, Debug)]
pub struct Quantity {
    nanos: i128,
    format: Format,
    /// The text as written, when it counts as canonical.
    text: Option<Box<str>>,
}

/// The parts of a quantity's text.
struct Parts<'a> {
    negative: bool,
    /// Digits before the point, without leading zeros; `0` when there are none.
    whole: &'a str,
    /// Digits behind the point.
    fraction: &'a str,
    suffix: &'a str,
}

impl Quantity {
    /// Reads a quantity.
    pub fn parse(text: &str) -> Result<Self, QuantityError> {
        if text.is_empty() {
            return Err(QuantityError::Format);
        }
        let parts = split(text)?;
        if let Some((_, exponent)) = BINARY.iter().find(|(name, _)| *name == parts.suffix) {
            return Ok(Self::binary(text, &parts, *exponent));
        }
        if let Some((_, exponent)) = DECIMAL.iter().find(|(name, _)| *name == parts.suffix) {
            return Self::decimal(text, &parts, *exponent, Format::DecimalSi);
        }
        let digits = parts.suffix.strip_prefix(['e', 'E']).ok_or(QuantityError::Suffix)?;
        let exponent = digits.parse::<i32>().map_err(|_| QuantityError::Suffix)?;
        Self::decimal(text, &parts, exponent, Format::DecimalExponent)
    }

    fn decimal(text: &str, parts: &Parts<'_>, exponent: i32, format: Format) -> Result<Self, QuantityError> {
        let digits = [parts.whole, parts.fraction].concat();
        let scale = i64::from(exponent) - parts.fraction.len() as i64;
        let nanos = scaled(digits.trim_start_matches('0'), scale + 9)?;
        let canonical = digits.len() <= 18
            && scale >= -9
            && scale % 3 == 0
            && !digits.ends_with("000")
            && !digits.starts_with('0');
        let nanos = if parts.negative { -nanos } else { nanos };
        Ok(Self { nanos, format, text: canonical.then(|| text.into()) })
    }

    fn binary(text: &str, parts: &Parts<'_>, exponent: u32) -> Self {
        let max = i128::from(i64::MAX) * NANO;
        // More than 20 digits are above the cap whatever follows.
        let whole = if parts.whole.len() > 20 { i128::MAX } else { parts.whole.parse().unwrap_or(i128::MAX) };
        let units = whole.checked_mul(1 << exponent).filter(|u| *u <= i128::from(i64::MAX));
        let fits = units.is_some() && parts.fraction.is_empty();
        let nanos = units.map_or(max, |u| (u * NANO + binary_fraction(parts.fraction, exponent)).min(max));
        let precise = 15 - parts.whole.len() as i64 - i64::from(exponent * 3 / 10) > 0;
        let canonical = fits && precise && whole & 7 != 0;
        // A fraction of one unit has no binary form.
        let format = if nanos > 0 && nanos < NANO { Format::DecimalSi } else { Format::BinarySi };
        let nanos = if parts.negative { -nanos } else { nanos };
        Self { nanos, format, text: canonical.then(|| text.into()) }
    }

    /// A whole number.
    pub fn from_units(value: i64, format: Format) -> Self {
        Self { nanos: i128::from(value) * NANO, format, text: None }
    }

    /// A number of thousandths.
    pub fn from_millis(millis: i64, format: Format) -> Self {
        Self { nanos: i128::from(millis) * (NANO / 1000), format, text: None }
    }

    /// The number, rounded away from zero to a whole one, and capped to what fits.
    pub fn units(&self) -> i64 {
        saturate(divide_away(self.nanos, NANO))
    }

    /// The number in thousandths, rounded away from zero, and capped to what fits.
    pub fn millis(&self) -> i64 {
        saturate(divide_away(self.nanos, NANO / 1000))
    }

    /// -1, 0 or 1.
    pub fn sign(&self) -> i32 {
        self.nanos.signum() as i32
    }

    /// True for nothing.
    pub fn is_zero(&self) -> bool {
        self.nanos == 0
    }

    /// The kind of suffix it prints with.
    pub fn format(&self) -> Format {
        self.format
    }

    /// The sum, printed like `self` (like `other` when `self` is zero).
    #[must_use]
    pub fn add(&self, other: &Self) -> Self {
        let format = if self.is_zero() { other.format } else { self.format };
        Self { nanos: self.nanos.saturating_add(other.nanos), format, text: None }
    }

    /// The difference, printed like `self` (like `other` when `self` is zero).
    #[must_use]
    pub fn sub(&self, other: &Self) -> Self {
        let format = if self.is_zero() { other.format } else { self.format };
        Self { nanos: self.nanos.saturating_sub(other.nanos), format, text: None }
    }

    fn write_decimal(&self, f: &mut fmt::Formatter<'_>, format: Format) -> fmt::Result {
        let (mut mantissa, mut exponent) = (self.nanos, -9);
        while mantissa % 1000 == 0 && (exponent < 18 || format == Format::DecimalExponent) {
            mantissa /= 1000;
            exponent += 3;
        }
        match (format, exponent) {
            (_, 0) => write!(f, "{mantissa}"),
            (Format::DecimalExponent, _) => write!(f, "{mantissa}e{exponent}"),
            _ => {
                let suffix = DECIMAL.iter().find(|(_, e)| *e == exponent).map_or("", |(name, _)| name);
                write!(f, "{mantissa}{suffix}")
            }
        }
    }
}

impl fmt::Display for Quantity {
    /// The canonical form: no fraction, the largest suffix that loses nothing.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(text) = &self.text {
            return f.write_str(text);
        }
        if self.is_zero() {
            return f.write_str("0");
        }
        let binary =
            self.format == Format::BinarySi && self.nanos.abs() >= 1024 * NANO && self.nanos % NANO == 0;
        if !binary {
            let format = if self.format == Format::BinarySi { Format::DecimalSi } else { self.format };
            return self.write_decimal(f, format);
        }
        let mut units = self.nanos / NANO;
        let mut suffix = "";
        for (name, _) in BINARY {
            if units % 1024 != 0 {
                break;
            }
            units /= 1024;
            suffix = name;
        }
        write!(f, "{units}{suffix}")
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

impl std::str::FromStr for Quantity {
    type Err = QuantityError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        Self::parse(s)
    }
}

fn split(text: &str) -> Result<Parts<'_>, QuantityError> {
    let negative = text.starts_with('-');
    let rest = text.strip_prefix(['-', '+']).unwrap_or(text).trim_start_matches('0');
    let digits = |s: &str| s.bytes().take_while(u8::is_ascii_digit).count();
    let (whole, rest) = rest.split_at(digits(rest));
    let (fraction, suffix) = match rest.strip_prefix('.') {
        Some(rest) => rest.split_at(digits(rest)),
        None => ("", rest),
    };
    let letters = suffix.trim_start_matches(|c| "eEinumkKMGTP".contains(c));
    let number = letters.strip_prefix(['-', '+']).unwrap_or(letters);
    if digits(number) != number.len() {
        return Err(QuantityError::Format);
    }
    Ok(Parts { negative, whole: if whole.is_empty() { "0" } else { whole }, fraction, suffix })
}

/// `digits * 10^exponent`, rounded up to a whole number.
fn scaled(digits: &str, exponent: i64) -> Result<i128, QuantityError> {
    if digits.is_empty() {
        return Ok(0);
    }
    let kept = (digits.len() as i64).saturating_add(exponent);
    if kept > 38 {
        return Err(QuantityError::Numeric);
    }
    if exponent >= 0 {
        // At most 38 digits in all, so that neither step overflows.
        let value: i128 = digits.parse().map_err(|_| QuantityError::Numeric)?;
        return value.checked_mul(10_i128.pow(exponent as u32)).ok_or(QuantityError::Numeric);
    }
    let (head, tail) = digits.split_at(kept.max(0) as usize);
    let value: i128 = if head.is_empty() { 0 } else { head.parse().map_err(|_| QuantityError::Numeric)? };
    let rounds_up = tail.bytes().any(|b| b != b'0');
    Ok(value + i128::from(rounds_up))
}

/// Nano-units of the fraction `0.<digits> * 2^exponent`, rounded up. Exact for 20 digits; more only round up.
fn binary_fraction(digits: &str, exponent: u32) -> i128 {
    let (head, tail) = digits.split_at(digits.len().min(20));
    let value: i128 = head.parse().unwrap_or(0);
    let sticky = i128::from(tail.bytes().any(|b| b != b'0'));
    let places = head.len() as u32;
    if places <= 9 {
        return (value << exponent) * 10_i128.pow(9 - places);
    }
    let divisor = 10_i128.pow(places - 9);
    (((value + sticky) << exponent) + divisor - 1) / divisor
}

fn divide_away(value: i128, by: i128) -> i128 {
    value / by + if value % by == 0 { 0 } else { value.signum() }
}

fn saturate(value: i128) -> i64 {
    i64::try_from(value).unwrap_or(if value < 0 { i64::MIN } else { i64::MAX })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn canonical_form() {
        for (text, canonical) in [
            ("0", "0"),
            ("00", "0"),
            ("0Ki", "0"),
            ("1", "1"),
            ("100m", "100m"),
            ("1000m", "1"),
            ("0.5", "500m"),
            (".5", "500m"),
            ("1.5", "1500m"),
            ("1.500", "1.500"),
            ("0.500", "500m"),
            ("1024", "1024"),
            ("1000", "1k"),
            ("1000Mi", "1000Mi"),
            ("1024Mi", "1Gi"),
            ("1025Mi", "1025Mi"),
            ("1.5Gi", "1536Mi"),
            ("0.5Gi", "512Mi"),
            ("512Ki", "512Ki"),
            ("2048Ki", "2Mi"),
            ("0.5Ki", "512"),
            ("0.001Ki", "1024m"),
            ("100Ei", "9223372036854775807"),
            ("1e3", "1e3"),
            ("1E3", "1E3"),
            ("1000e3", "1e6"),
            ("12e6", "12e6"),
            ("10e2", "1e3"),
            ("1e2", "100"),
            ("0.1m", "100u"),
            ("0.1n", "1n"),
            ("-1", "-1"),
            ("-0.5", "-500m"),
            ("-1024Ki", "-1Mi"),
            ("1E", "1E"),
            ("1234567890123456789", "1234567890123456789"),
            ("+5", "+5"),
            ("64Mi", "64Mi"),
            ("128974848", "128974848"),
            ("129e6", "129e6"),
            ("129M", "129M"),
            ("128974848000m", "128974848"),
        ] {
            assert_eq!(Quantity::parse(text).map(|q| q.to_string()), Ok(canonical.to_owned()), "{text}");
        }
    }

    #[test]
    fn refused() {
        use QuantityError::*;
        for (text, error) in [
            ("", Format),
            ("abc", Format),
            ("1.2.3", Format),
            (" 1", Format),
            ("1 ", Format),
            ("1+1", Suffix),
            ("1i", Suffix),
            ("1mi", Suffix),
            ("1KM", Suffix),
            ("1e", Suffix),
            ("1e99999999999", Suffix),
            ("1e300", Numeric),
            ("1gb", Format),
            ("--1", Suffix),
            ("1Kib", Format),
        ] {
            assert_eq!(Quantity::parse(text).map(|q| q.to_string()), Err(error), "{text}");
        }
    }

    #[test]
    fn arithmetic() {
        let q = |s: &str| Quantity::parse(s).expect("valid");
        assert_eq!(q("1Gi").add(&q("512Mi")).to_string(), "1536Mi");
        assert_eq!(q("1").sub(&q("250m")).to_string(), "750m");
        assert_eq!(q("0").add(&q("1Ki")).to_string(), "1Ki");
        assert_eq!((q("1500m").units(), q("1500m").millis(), q("1n").millis()), (2, 1500, 1));
        assert_eq!((q("-1500m").units(), q("1e20").units()), (-2, i64::MAX));
        assert!(q("1Gi") > q("1G") && q("1000m") == q("1"));
        assert_eq!(Quantity::from_millis(1500, super::Format::DecimalSi).to_string(), "1500m");
        assert_eq!(Quantity::from_units(1 << 30, super::Format::BinarySi).to_string(), "1Gi");
    }

    proptest! {
        #[test]
        fn printing_and_parsing_agree(value in any::<i64>(), suffix in "(n|u|m|k|M|Ki|Mi|e3|E-6|)") {
            let text = format!("{value}{suffix}");
            let first = Quantity::parse(&text).expect("valid");
            let second = Quantity::parse(&first.to_string()).expect("printed text is valid");
            prop_assert_eq!(&first, &second);
            prop_assert_eq!(first.to_string(), second.to_string());
        }

        #[test]
        fn any_text_is_answered(text in "[-+]?[0-9.]{0,30}[eEinumkKMGTP]{0,3}[-+]?[0-9]{0,12}") {
            if let Ok(q) = Quantity::parse(&text) {
                let again = Quantity::parse(&q.to_string()).expect("printed text is valid");
                prop_assert_eq!(q, again);
            }
        }
    }
}
