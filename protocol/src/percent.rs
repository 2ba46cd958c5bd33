//! Percent escapes in paths and queries. Decoded here and not by the crate `percent-encoding`, which leaves a broken
//! escape as text, so that two addresses would name one thing.

/// Decodes percent escapes; `None` where an escape is broken or the result is not UTF-8. `plus` makes `+` a
/// space, as in a query string.
#[must_use]
pub fn percent_decode(text: &str, plus: bool) -> Option<String> {
    let bytes = text.as_bytes();
    if !bytes.iter().any(|&b| b == b'%' || b == b'+') {
        return Some(text.to_owned());
    }
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while let Some(&byte) = bytes.get(i) {
        i += 1;
        match byte {
            b'%' => {
                let hex = |at: usize| bytes.get(at).and_then(|&b| char::from(b).to_digit(16));
                let value = hex(i)? * 16 + hex(i + 1)?;
                out.push(u8::try_from(value).ok()?);
                i += 2;
            }
            b'+' if plus => out.push(b' '),
            byte => out.push(byte),
        }
    }
    String::from_utf8(out).ok()
}
