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
    /// The entity types read.
    pub types: EntityTypes,
    /// The scope read; none reads every scope.
    pub scope: Option<Scope>,
    /// Whether messages carry the values that rows had before, where the type keeps them.
    pub old_values: bool,
}

/// The entity types that a stream reads. All derived streams share one log, so one offset places any set of them.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum EntityTypes {
    /// Every type.
    All,
    /// One.
    One(Arc<str>),
    /// Several, sorted, each once.
    Several(Arc<[Arc<str>]>),
}

impl EntityTypes {
    /// These types, whatever their order.
    #[must_use]
    pub fn of(mut names: Vec<Arc<str>>) -> EntityTypes {
        names.sort_unstable();
        names.dedup();
        match names.as_slice() {
            [one] => EntityTypes::One(one.clone()),
            _ => EntityTypes::Several(names.into()),
        }
    }

    /// Their names; none where there is no choice among them.
    #[must_use]
    pub fn names(&self) -> Option<&[Arc<str>]> {
        match self {
            EntityTypes::All => None,
            EntityTypes::One(name) => Some(std::slice::from_ref(name)),
            EntityTypes::Several(names) => Some(names),
        }
    }
}

impl Selector {
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
        let mut take = |bytes: &[u8]| {
            for byte in bytes {
                hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
            }
        };
        let kind = match (self.kind, self.old_values) {
            (MessageKind::Change, true) => "c",
            (MessageKind::Change, false) => "n",
            (MessageKind::Activity, true) => "a",
            (MessageKind::Activity, false) => "b",
        };
        // Bytes that no text has stand between the parts.
        take(kind.as_bytes());
        take(&[0xff]);
        for (place, name) in self.types.names().unwrap_or_default().iter().enumerate() {
            if place > 0 {
                take(&[0xfe]);
            }
            take(name.as_bytes());
        }
        take(&[0xff]);
        take(self.scope.as_ref().map_or("", Scope::as_str).as_bytes());
        take(&[0xff]);
        format!("{hash:016x}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn types(names: &[&str]) -> EntityTypes {
        EntityTypes::of(names.iter().copied().map(Arc::from).collect())
    }

    #[test]
    fn streams_that_differ_have_fingerprints_that_differ() {
        let stream = |kind, types, scope: Option<&str>, old_values| {
            let scope = scope.map(|s| Scope::new(s).unwrap());
            Selector { kind, types, scope, old_values }.fingerprint()
        };
        let all = [
            stream(MessageKind::Change, types(&["page"]), None, true),
            stream(MessageKind::Change, types(&["page"]), None, false),
            stream(MessageKind::Change, types(&["page"]), Some("acme"), true),
            stream(MessageKind::Change, types(&["page", "acme"]), None, true),
            stream(MessageKind::Change, types(&["pageacme"]), None, true),
            stream(MessageKind::Activity, types(&["page"]), None, true),
            stream(MessageKind::Activity, EntityTypes::All, None, true),
            stream(MessageKind::Activity, EntityTypes::All, Some("page"), true),
        ];
        assert_eq!(all.iter().collect::<std::collections::HashSet<_>>().len(), all.len());
    }

    #[test]
    fn a_set_of_types_is_the_same_whatever_order_it_is_given_in() {
        assert_eq!(types(&["task", "page", "task"]), types(&["page", "task"]));
        assert_eq!(types(&["page", "page"]), EntityTypes::One("page".into()));
        assert_eq!(types(&["page", "task"]).names().map(<[_]>::len), Some(2));
        assert_eq!(EntityTypes::All.names(), None);
    }
}
