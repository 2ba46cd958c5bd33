//! Patterns over stream paths: `*` is one segment, `**` is any number of them, anything else is itself.

/// Whether a pattern matches a path.
#[must_use]
pub fn matches(pattern: &str, path: &str) -> bool {
    let pattern: Vec<&str> = pattern.split('/').collect();
    // Where in the pattern the path may have come to; one pass, whatever the pattern is.
    let mut at = vec![false; pattern.len() + 1];
    at[0] = true;
    skip_empty(&pattern, &mut at);
    for segment in path.split('/') {
        let mut next = vec![false; pattern.len() + 1];
        for (i, part) in pattern.iter().enumerate().filter(|(i, _)| at[*i]) {
            match *part {
                "**" => next[i] = true,
                "*" => next[i + 1] = true,
                word if word == segment => next[i + 1] = true,
                _ => {}
            }
        }
        skip_empty(&pattern, &mut next);
        at = next;
    }
    at[pattern.len()]
}

/// `**` may stand for nothing.
fn skip_empty(pattern: &[&str], at: &mut [bool]) {
    for (i, part) in pattern.iter().enumerate() {
        at[i + 1] |= at[i] && *part == "**";
    }
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn stars_are_segments() {
        for (pattern, path) in [
            ("events/*", "events/a"),
            ("events/**", "events"),
            ("events/**", "events/a/b"),
            ("**", "a/b"),
            ("**/b", "b"),
            ("a/**/d", "a/b/c/d"),
            ("a/**/**/d", "a/d"),
            ("a/*/c", "a/b/c"),
        ] {
            assert!(matches(pattern, path), "{pattern} {path}");
        }
        for (pattern, path) in
            [("events/*", "events"), ("events/*", "events/a/b"), ("a/**/d", "a/b"), ("a", "b"), ("a*", "ab")]
        {
            assert!(!matches(pattern, path), "{pattern} {path}");
        }
    }

    #[test]
    fn no_pattern_takes_long() {
        let (pattern, path) = (vec!["**"; 300].join("/") + "/z", vec!["a"; 300].join("/"));
        assert!(!matches(&pattern, &path));
    }
}
