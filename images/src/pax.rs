//! pax extended header records: `LENGTH KEY=VALUE\n`, LENGTH in decimal and counting the whole record.
//!
//! Pure: bytes in, records or problem out. Values may hold any byte, newline and zero included.

/// One record.
pub(crate) type Record = (String, Vec<u8>);

/// Splits the content of a pax header.
pub(crate) fn parse(mut bytes: &[u8]) -> Result<Vec<Record>, String> {
    let mut records = Vec::new();
    while !bytes.is_empty() {
        let space = bytes
            .iter()
            .take(21)
            .position(|b| *b == b' ')
            .ok_or("a record without a length")?;
        let length = decimal(&bytes[..space]).ok_or("a record length that is no number")?;
        let length = usize::try_from(length)
            .ok()
            .filter(|length| *length > space + 1 && *length <= bytes.len());
        let length = length.ok_or("a record that is longer or shorter than its header")?;
        let (record, rest) = bytes.split_at(length);
        let body = record[space + 1..]
            .strip_suffix(b"\n")
            .ok_or("a record without its newline")?;
        let equals = body
            .iter()
            .position(|b| *b == b'=')
            .ok_or("a record without '='")?;
        let key = std::str::from_utf8(&body[..equals]).map_err(|_| "a key that is not UTF-8")?;
        if key.is_empty() || key.contains('\0') {
            return Err("an empty key".into());
        }
        records.push((key.to_string(), body[equals + 1..].to_vec()));
        bytes = rest;
    }
    Ok(records)
}

/// A plain decimal number.
pub(crate) fn decimal(bytes: &[u8]) -> Option<u64> {
    if bytes.is_empty() || !bytes.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(bytes).ok()?.parse().ok()
}

/// Seconds and nanoseconds of a pax time: `[-]SECONDS[.FRACTION]`.
pub(crate) fn time(bytes: &[u8]) -> Option<(i64, i64)> {
    let (negative, digits) = match bytes.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, bytes),
    };
    let mut halves = digits.splitn(2, |b| *b == b'.');
    let seconds = i64::try_from(decimal(halves.next()?)?).ok()?;
    let mut nanos = 0i64;
    if let Some(fraction) = halves.next() {
        if !fraction.iter().all(u8::is_ascii_digit) {
            return None;
        }
        for at in 0..9 {
            nanos = nanos * 10 + i64::from(fraction.get(at).map_or(0, |b| b - b'0'));
        }
    }
    match (negative, nanos) {
        (false, _) => Some((seconds, nanos)),
        (true, 0) => Some((-seconds, 0)),
        (true, _) => Some((-seconds - 1, 1_000_000_000 - nanos)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn records_and_their_faults() {
        let good = b"12 path=abc\n20 SCHILY.xattr.a=\n\0\n";
        let records = parse(&good[..12]).unwrap();
        assert_eq!(records, [("path".to_string(), b"abc".to_vec())]);
        let with_newline = parse(b"21 SCHILY.xattr.a=\n\0\n").unwrap();
        assert_eq!(with_newline[0].1, b"\n\0");
        for bad in [
            "12 path=abc",
            "path=abc\n",
            "99 path=abc\n",
            "3 =\n",
            "0 a=b\n",
            "8 patha\n",
            "-1 a=b\n",
            "6 =b c\n",
        ] {
            assert!(parse(bad.as_bytes()).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn times() {
        assert_eq!(time(b"1.5"), Some((1, 500_000_000)));
        assert_eq!(time(b"-1.25"), Some((-2, 750_000_000)));
        assert_eq!(time(b"7"), Some((7, 0)));
        for bad in ["", "-", "1.x", "1e3", "99999999999999999999"] {
            assert_eq!(time(bad.as_bytes()), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = (parse(&bytes), time(&bytes));
        }

        #[test]
        fn what_is_written_is_read(key in "[A-Za-z.]{1,20}", value in proptest::collection::vec(any::<u8>(), 0..120)) {
            let body = key.len() + value.len() + 3;
            let length = (body..body + 6).find(|n| n.to_string().len() + body == *n).unwrap();
            let mut record = format!("{length} {key}=").into_bytes();
            record.extend(&value);
            record.push(b'\n');
            prop_assert_eq!(parse(&record).unwrap(), vec![(key, value)]);
        }
    }
}
