//! Kinds of input and of trouble by their names. Those that are known to fail are left out of the runs until the fault is
//! fixed; a run can ask for them all the same.

/// What is left out. A name goes from this list when the fault it stands for is fixed.
const KNOWN_TROUBLE: &[&str] = &[
    // On PostgreSQL a row that is changed before the first comparison has come to it is streamed as changed, not as made.
    "strict-beginning",
];

/// Whether a kind of input was asked for by name: it comes more often then.
pub fn wanted(feature: &str) -> bool {
    let wanted = std::env::var("BOURN_ORACLE_TROUBLE").unwrap_or_default();
    !feature.is_empty() && wanted.split(',').any(|name| name == feature)
}

/// Whether a kind of input or trouble takes part in this run. The empty name always does.
pub fn on(feature: &str) -> bool {
    if feature.is_empty() || !KNOWN_TROUBLE.contains(&feature) {
        let left_out = std::env::var("BOURN_ORACLE_WITHOUT").unwrap_or_default();
        return feature.is_empty() || !left_out.split(',').any(|name| name == feature);
    }
    wanted("all") || wanted(feature)
}
