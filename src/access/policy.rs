//! What the configuration lets tokens give: roles, entity types, patterns of stored streams.

use std::collections::{HashMap, HashSet};

use bourn_protocol::stored::glob;

use crate::config::{AccessConfig, EVERY, EntityConfig, RoleConfig, StreamRights, UndoRight};

/// The placeholder in a pattern for one of the caller's scopes.
const SCOPE: &str = "{scope}";
/// The placeholder for the caller.
const SUBJECT: &str = "{sub}";
/// Any number of segments.
const REST: &str = "**";

/// The configuration, as rights are looked up in it.
#[derive(Debug)]
pub(super) struct Policy {
    /// Entity types by name; whether they have a scope.
    pub(super) types: HashMap<String, bool>,
    pub(super) roles: HashMap<String, Role>,
}

/// A role.
#[derive(Debug)]
pub(super) struct Role {
    read: Types,
    write: Types,
    pub(super) scopes: Vec<String>,
    read_only_columns: HashMap<String, HashSet<String>>,
    pub(super) history: bool,
    pub(super) undo: UndoRight,
    pub(super) streams: Vec<(String, StreamRights)>,
}

#[derive(Debug)]
enum Types {
    Every,
    These(HashSet<String>),
}

impl Types {
    fn of(names: &[String]) -> Types {
        if names.iter().any(|name| name == EVERY) {
            Types::Every
        } else {
            Types::These(names.iter().cloned().collect())
        }
    }

    fn has(&self, name: &str) -> bool {
        match self {
            Types::Every => true,
            Types::These(names) => names.contains(name),
        }
    }
}

impl Policy {
    pub(super) fn new(config: &AccessConfig, entities: &[EntityConfig]) -> Policy {
        let types = entities.iter().map(|entity| (entity.name.clone(), entity.scope.is_some())).collect();
        let roles = config.roles.iter().map(|role| (role.name.clone(), Role::of(role))).collect();
        Policy { types, roles }
    }

    /// Whether rows of this type belong to scopes.
    pub(super) fn is_scoped(&self, entity_type: &str) -> bool {
        self.types.get(entity_type).copied().unwrap_or(true)
    }
}

impl Role {
    fn of(config: &RoleConfig) -> Role {
        let columns =
            |(name, columns): (&String, &Vec<String>)| (name.clone(), columns.iter().cloned().collect());
        Role {
            read: Types::of(&config.read),
            write: Types::of(&config.write),
            scopes: config.scopes.clone(),
            read_only_columns: config.read_only_columns.iter().map(columns).collect(),
            history: config.history,
            undo: config.undo,
            streams: config.streams.iter().map(|(pattern, rights)| (pattern.clone(), *rights)).collect(),
        }
    }

    pub(super) fn reads(&self, entity_type: &str) -> bool {
        self.read.has(entity_type)
    }

    pub(super) fn writes(&self, entity_type: &str) -> bool {
        self.write.has(entity_type)
    }

    pub(super) fn sets(&self, entity_type: &str, column: &str) -> bool {
        let kept = |of: &str| self.read_only_columns.get(of).is_some_and(|columns| columns.contains(column));
        !kept(entity_type) && !kept(EVERY)
    }
}

/// Those whom the placeholders of patterns stand for.
pub(super) trait Caller {
    fn has_scope(&self, scope: &str) -> bool;
    fn is_subject(&self, subject: &str) -> bool;
}

/// Whether a pattern with placeholders matches a path for a caller.
pub(super) fn matches(pattern: &str, path: &str, caller: &impl Caller) -> bool {
    stands_for(pattern, path, caller) && glob::matches(&without_placeholders(pattern), path)
}

/// Whether everything that `wanted`, a pattern without placeholders, matches is matched by `pattern` for a caller. It may say
/// no where a closer look would say yes.
pub(super) fn contains(pattern: &str, wanted: &str, caller: &impl Caller) -> bool {
    if !stands_for(pattern, wanted, caller) {
        return false;
    }
    let plain = without_placeholders(pattern);
    let (granted, wanted): (Vec<&str>, Vec<&str>) = (plain.split('/').collect(), wanted.split('/').collect());
    let segment = |granted: &str, wanted: &str| wanted != REST && (granted == "*" || granted == wanted);
    match granted.iter().position(|part| *part == REST) {
        None => {
            granted.len() == wanted.len()
                && granted.iter().zip(&wanted).all(|(granted, wanted)| segment(granted, wanted))
        }
        Some(at) if at + 1 == granted.len() => {
            wanted.len() >= at
                && granted[..at].iter().zip(&wanted).all(|(granted, wanted)| segment(granted, wanted))
        }
        Some(_) => granted == wanted,
    }
}

/// Whether the placeholders stand for what a path has in their place. The configuration has them before any `**`.
fn stands_for(pattern: &str, path: &str, caller: &impl Caller) -> bool {
    let mut segments = path.split('/');
    pattern.split('/').take_while(|part| *part != REST).all(|part| {
        let Some(segment) = segments.next() else { return part != SCOPE && part != SUBJECT };
        match part {
            SCOPE => caller.has_scope(segment),
            SUBJECT => caller.is_subject(segment),
            _ => true,
        }
    })
}

fn without_placeholders(pattern: &str) -> String {
    let parts = pattern.split('/').map(|part| if matches!(part, SCOPE | SUBJECT) { "*" } else { part });
    parts.collect::<Vec<_>>().join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Alice;

    impl Caller for Alice {
        fn has_scope(&self, scope: &str) -> bool {
            ["acme", "globex"].contains(&scope)
        }

        fn is_subject(&self, subject: &str) -> bool {
            subject == "alice"
        }
    }

    #[test]
    fn placeholders_stand_for_the_caller() {
        for (pattern, path) in [
            ("chats/{scope}/**", "chats/acme/room/1"),
            ("chats/{scope}/**", "chats/acme"),
            ("users/{sub}/*", "users/alice/drafts"),
            ("{scope}/{sub}", "globex/alice"),
            ("public/**", "public/a/b"),
        ] {
            assert!(matches(pattern, path, &Alice), "{pattern} {path}");
        }
        for (pattern, path) in [
            ("chats/{scope}/**", "chats/initech/room"),
            ("chats/{scope}/**", "chats/{scope}/room"),
            ("chats/{scope}/**", "chats"),
            ("chats/{scope}/**", "chats/acme2"),
            ("users/{sub}/*", "users/bob/drafts"),
            ("users/{sub}/*", "users/alice"),
            ("{scope}/{sub}", "globex/alice/x"),
        ] {
            assert!(!matches(pattern, path, &Alice), "{pattern} {path}");
        }
    }

    #[test]
    fn a_pattern_lies_within_another_only_if_all_that_it_matches_does() {
        for (granted, wanted) in [
            ("chats/{scope}/**", "chats/acme/**"),
            ("chats/{scope}/**", "chats/acme/*/messages"),
            ("a/*", "a/*"),
            ("a/*", "a/b"),
            ("**", "**"),
            ("**", "a/*/b"),
        ] {
            assert!(contains(granted, wanted, &Alice), "{granted} {wanted}");
        }
        for (granted, wanted) in [
            ("chats/{scope}/**", "chats/*/room"),
            ("chats/{scope}/**", "chats/**"),
            ("chats/{scope}/**", "**"),
            ("a/*", "a/**"),
            ("a/*", "a/b/c"),
            ("a/b", "a/*"),
            ("a/**/b", "a/**"),
        ] {
            assert!(!contains(granted, wanted, &Alice), "{granted} {wanted}");
        }
    }
}
