//! As much of pgoutput as a consumer cannot do without: which changes there are, and each column's text.

/// Goes through a change; `column` is given each text of a new row. Says whether a row was inserted, updated or
/// deleted; nothing for the other messages and for what is cut short.
pub(super) fn change(message: &[u8], mut column: impl FnMut(&str)) -> Option<()> {
    let (&kind, rest) = message.split_first()?;
    // The relation's number.
    let (_, mut rest) = rest.split_at_checked(4)?;
    if !matches!(kind, b'I' | b'U' | b'D') {
        return None;
    }
    while let Some((&part, tuple)) = rest.split_first() {
        rest = self::tuple(tuple, |text| {
            if part == b'N' {
                column(text);
            }
        })?;
    }
    Some(())
}

/// Goes through a row; gives what comes behind it.
fn tuple(bytes: &[u8], mut column: impl FnMut(&str)) -> Option<&[u8]> {
    let (columns, mut rest) = bytes.split_first_chunk::<2>()?;
    for _ in 0..u16::from_be_bytes(*columns) {
        let (&form, behind) = rest.split_first()?;
        rest = behind;
        if matches!(form, b't' | b'b') {
            let (length, behind) = rest.split_first_chunk::<4>()?;
            let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
            let (text, behind) = behind.split_at_checked(length)?;
            column(std::str::from_utf8(text).ok()?);
            rest = behind;
        }
    }
    Some(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_found_in_their_messages() {
        let mut seen = Vec::new();
        let update = b"U\0\0\0\x01O\0\x01t\0\0\0\x01aN\0\x03nut\0\0\0\x02bc";
        assert_eq!(change(update, |text| seen.push(text.to_owned())), Some(()));
        assert_eq!(seen, ["bc"]);
        assert_eq!(change(b"D\0\0\0\x01K\0\x01t\0\0\0\x01a", |_| {}), Some(()));
        assert_eq!(change(b"R\0\0\0\x01public\0t\0", |_| {}), None);
        assert_eq!(change(b"I\0\0\0\x01N\0\x01t\0\0\0\x09a", |_| {}), None);
        assert_eq!(change(b"", |_| {}), None);
    }
}
