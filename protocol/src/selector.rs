//! What one stream URL reads: which activities, and which of their two messages. It names streams in the
//! chunk cache, the live tail and the storage alike.

use std::sync::Arc;

use crate::activity::{MessageKind, Wording};
use crate::ids::Scope;

/// One derived stream.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Selector {
    /// Change messages, or activities.
    pub kind: MessageKind,
    /// The entity type read; none reads every type.
    pub entity_type: Option<Arc<str>>,
    /// The scope read; none reads every scope.
    pub scope: Option<Scope>,
    /// Whether messages carry the values that rows had before, where the type keeps them.
    pub old_values: bool,
}

impl Selector {
    /// Whether an activity with this type and scope belongs to the stream.
    #[must_use]
    pub fn matches(&self, entity_type: &str, organization_id: Option<&str>) -> bool {
        self.entity_type.as_deref().is_none_or(|wanted| wanted == entity_type)
            && self.scope.as_ref().is_none_or(|wanted| Some(wanted.as_str()) == organization_id)
    }

    /// How the stream words its messages.
    #[must_use]
    pub fn wording(&self) -> Wording {
        Wording { kind: self.kind, scoped: self.scope.is_some(), old_values: self.old_values }
    }

    /// A short text that tells this stream from every other one, for entity tags.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        // FNV-1a: stable across builds and servers, which `std`'s hasher does not promise.
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        let kind = match (self.kind, self.old_values) {
            (MessageKind::Change, true) => "c",
            (MessageKind::Change, false) => "n",
            (MessageKind::Activity, true) => "a",
            (MessageKind::Activity, false) => "b",
        };
        let parts =
            [kind, self.entity_type.as_deref().unwrap_or(""), self.scope.as_ref().map_or("", Scope::as_str)];
        for part in parts {
            for byte in part.bytes().chain([0xff]) {
                hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
            }
        }
        format!("{hash:016x}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_that_differ_have_fingerprints_that_differ() {
        let stream = |kind, entity_type: Option<&str>, scope: Option<&str>| {
            let scope = scope.map(|s| Scope::new(s).unwrap());
            Selector { kind, entity_type: entity_type.map(Arc::from), scope, old_values: true }.fingerprint()
        };
        let without = Selector {
            kind: MessageKind::Change,
            entity_type: Some("page".into()),
            scope: None,
            old_values: false,
        };
        let all = [
            stream(MessageKind::Change, Some("page"), None),
            stream(MessageKind::Change, Some("page"), Some("acme")),
            stream(MessageKind::Activity, Some("page"), None),
            stream(MessageKind::Activity, None, None),
            stream(MessageKind::Activity, None, Some("page")),
            without.fingerprint(),
        ];
        assert_eq!(all.iter().collect::<std::collections::HashSet<_>>().len(), all.len());
    }
}
