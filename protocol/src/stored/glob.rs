//! Patterns over stream paths: `*` is one segment, `**` is any number of them, anything else is itself.

/// Whether a pattern matches a path. Only the last `**` that was passed is ever backtracked to: what stands before it
/// matches as early as it can, and going back further could not help. So the time is that of the path's segments times
/// the segments between two `**`, and nothing is allocated.
#[must_use]
pub fn matches(pattern: &str, path: &str) -> bool {
    let (mut parts, mut segments) = (pattern.split('/'), path.split('/'));
    // What follows the last `**`, and the first segment that it has not been tried at.
    let mut retry = None;
    loop {
        let (mut next_parts, mut next_segments) = (parts.clone(), segments.clone());
        match (next_parts.next(), next_segments.next()) {
            (None, None) => return true,
            (Some("**"), _) => {
                parts = next_parts;
                // At a pattern's end it stands for all that is left.
                if parts.clone().next().is_none() {
                    return true;
                }
                retry = Some((parts.clone(), segments.clone()));
            }
            (Some(part), Some(segment)) if part == "*" || part == segment => {
                (parts, segments) = (next_parts, next_segments);
            }
            // More of the pattern is left than of the path, which going on later cannot change.
            (Some(_), None) => return false,
            (None | Some(_), Some(_)) => {
                let Some((after, mut from)) = retry.take() else { return false };
                if from.next().is_none() {
                    return false;
                }
                (parts, segments) = (after.clone(), from.clone());
                retry = Some((after, from));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::matches;
    use proptest::prelude::*;

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
        let path = vec!["a"; 501].join("/");
        let started = std::time::Instant::now();
        for _ in 0..20 {
            assert!(!matches(&(vec!["**"; 670].join("/") + "/z"), &path));
            assert!(!matches(&(vec!["**/a"; 400].join("/") + "/z"), &path));
        }
        assert!(started.elapsed().as_secs() < 2, "took {:?}", started.elapsed());
    }

    /// The definition of a match, without regard to time.
    fn by_definition(pattern: &[&str], path: &[&str]) -> bool {
        match (pattern, path) {
            ([], []) => true,
            (["**", rest @ ..], _) => (0..=path.len()).any(|skip| by_definition(rest, &path[skip..])),
            ([part, parts @ ..], [segment, segments @ ..]) => {
                (*part == "*" || part == segment) && by_definition(parts, segments)
            }
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn it_matches_what_the_definition_says(
            pattern in prop::collection::vec(prop::sample::select(vec!["a", "b", "*", "**"]), 1..8),
            path in prop::collection::vec(prop::sample::select(vec!["a", "b"]), 1..8),
        ) {
            let found = matches(&pattern.join("/"), &path.join("/"));
            prop_assert_eq!(found, by_definition(&pattern, &path));
        }
    }
}
