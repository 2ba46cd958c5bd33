//! What one caller may do: looked up for each request, never narrowing what a URL means.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use bourn_protocol::{ClientId, MessageKind, Selector, StreamPath};

use super::policy::{self, Caller, Policy, Role};
use crate::config::{EVERY, StreamRights, UndoRight};

/// What may be done with rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Right {
    /// Lists, rows and their changes.
    Read,
    /// Creating, changing and deleting rows.
    Write,
    /// Activities, and the values that rows had.
    History,
    /// Undoing transactions.
    Undo,
}

impl Right {
    const fn verb(self) -> &'static str {
        match self {
            Right::Read => "read",
            Right::Write => "write",
            Right::History => "read the history of",
            Right::Undo => "undo changes of",
        }
    }
}

/// What may be done with a stored stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "each is the word for what is done")]
pub enum StreamRight {
    Read,
    Append,
    Create,
    Delete,
}

/// Why something is refused to a caller whose token is good.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// Some scopes may be used, and none was named.
    #[error("name the scope: send organizationId with one that the token is for")]
    ScopeRequired,
    /// The scope is not one of the token's.
    #[error("the token is not for this scope")]
    ScopeForbidden,
    /// The role or the token does not give the right.
    #[error("the token does not give the right to {0}")]
    RightMissing(String),
    /// A column may not be set.
    #[error("the token does not give the right to set the column `{0}`")]
    ColumnForbidden(String),
    /// The token is for another device.
    #[error("the token is bound to another client id than `X-Client-Id` says")]
    ClientMismatch,
}

/// What may be done in one scope, by the letters of a token.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Letters {
    pub(super) read: bool,
    pub(super) write: bool,
    pub(super) history: bool,
    pub(super) undo: bool,
}

impl Letters {
    fn has(self, right: Right) -> bool {
        match right {
            Right::Read => self.read,
            Right::Write => self.write,
            Right::History => self.read && self.history,
            Right::Undo => self.write && self.undo,
        }
    }
}

/// The scopes that a role is for.
#[derive(Debug)]
pub(super) enum Scopes {
    Every,
    These(HashSet<String>),
}

impl Scopes {
    pub(super) fn of(names: impl IntoIterator<Item = String>) -> Scopes {
        let names: HashSet<String> = names.into_iter().collect();
        if names.contains(EVERY) { Scopes::Every } else { Scopes::These(names) }
    }
}

/// Where rights come from.
#[derive(Debug)]
pub(super) enum Grant {
    /// There is no access control.
    Everything,
    /// A role of the configuration, for these scopes.
    Role { name: String, scopes: Scopes },
    /// What the token itself says.
    Letters { scopes: HashMap<String, Letters>, streams: Vec<(String, StreamRights)> },
}

/// What one caller may do.
#[derive(Debug)]
pub struct Rights {
    pub(super) policy: Arc<Policy>,
    pub(super) grant: Grant,
    /// The caller, as the audit trail names it.
    pub(super) subject: Option<Arc<str>>,
    /// When the token's time is over, in Unix seconds.
    pub(super) expires: Option<u64>,
    /// The device that the token is bound to.
    pub(super) client: Option<ClientId>,
}

impl Rights {
    pub(super) fn of_everybody(policy: Arc<Policy>) -> Rights {
        Rights { policy, grant: Grant::Everything, subject: None, expires: None, client: None }
    }

    /// The rights where there is no access control.
    #[must_use]
    pub fn everything() -> Arc<Rights> {
        Arc::new(Rights::of_everybody(Arc::new(Policy::new(&crate::config::AccessConfig::default(), &[]))))
    }

    pub(super) fn of_nobody(policy: Arc<Policy>) -> Rights {
        let grant = Grant::Letters { scopes: HashMap::new(), streams: Vec::new() };
        Rights { policy, grant, subject: None, expires: None, client: None }
    }

    pub(super) fn of_anonymous(policy: Arc<Policy>, role: &str) -> Option<Rights> {
        let scopes = Scopes::of(policy.roles.get(role)?.scopes.iter().cloned());
        let grant = Grant::Role { name: role.to_owned(), scopes };
        Some(Rights { policy, grant, subject: None, expires: None, client: None })
    }

    /// Whether the token's time is not over.
    #[must_use]
    pub fn is_valid_at(&self, unix_secs: u64) -> bool {
        self.expires.is_none_or(|expires| unix_secs < expires)
    }

    /// When the token's time is over, in Unix seconds.
    #[must_use]
    pub fn expires(&self) -> Option<u64> {
        self.expires
    }

    /// The caller, as the audit trail names it; none without a token.
    #[must_use]
    pub fn subject(&self) -> Option<&Arc<str>> {
        self.subject.as_ref()
    }

    /// Whether there is no access control.
    #[must_use]
    pub fn is_everything(&self) -> bool {
        matches!(self.grant, Grant::Everything)
    }

    fn role(&self) -> Option<&Role> {
        match &self.grant {
            Grant::Role { name, .. } => self.policy.roles.get(name),
            Grant::Everything | Grant::Letters { .. } => None,
        }
    }

    /// Whether rows of a type may be read, written or undone in a scope; without a scope, in every one.
    ///
    /// # Errors
    /// What is missing.
    pub fn check(&self, right: Right, entity_type: &str, scope: Option<&str>) -> Result<(), Denied> {
        let missing = || Denied::RightMissing(format!("{} `{entity_type}`", right.verb()));
        let scoped = self.policy.is_scoped(entity_type);
        match &self.grant {
            Grant::Everything => Ok(()),
            Grant::Role { scopes, .. } => {
                let role = self.role().ok_or_else(missing)?;
                let given = match right {
                    Right::Read => role.reads(entity_type),
                    Right::Write => role.writes(entity_type),
                    Right::History => role.history && role.reads(entity_type),
                    Right::Undo => role.undo != UndoRight::None && role.writes(entity_type),
                };
                match (given, scopes, scope) {
                    (false, ..) => Err(missing()),
                    (true, Scopes::Every, _) => Ok(()),
                    (true, Scopes::These(_), _) if !scoped => Ok(()),
                    (true, Scopes::These(names), None) if names.is_empty() => Err(missing()),
                    (true, Scopes::These(_), None) => Err(Denied::ScopeRequired),
                    (true, Scopes::These(names), Some(scope)) if names.contains(scope) => Ok(()),
                    (true, Scopes::These(_), Some(_)) => Err(Denied::ScopeForbidden),
                }
            }
            Grant::Letters { scopes, .. } => {
                let has = |name: &str| scopes.get(name).map(|letters| letters.has(right));
                match scope {
                    _ if has(EVERY) == Some(true) => Ok(()),
                    _ if !scoped => Err(missing()),
                    None if scopes.values().any(|letters| letters.has(right)) => Err(Denied::ScopeRequired),
                    None => Err(missing()),
                    Some(scope) => match has(scope) {
                        Some(true) => Ok(()),
                        Some(false) => Err(missing()),
                        None => Err(Denied::ScopeForbidden),
                    },
                }
            }
        }
    }

    /// The same of one row; a row without a scope takes the right to every scope.
    ///
    /// # Errors
    /// What is missing.
    pub fn check_row(&self, right: Right, entity_type: &str, scope: Option<&str>) -> Result<(), Denied> {
        self.check(right, entity_type, scope).map_err(|denied| match denied {
            Denied::ScopeRequired => Denied::ScopeForbidden,
            denied => denied,
        })
    }

    /// The same of some scope or other.
    ///
    /// # Errors
    /// When it may be in none.
    pub fn check_some(&self, right: Right, entity_type: &str) -> Result<(), Denied> {
        match self.check(right, entity_type, None) {
            Err(Denied::ScopeRequired) => Ok(()),
            checked => checked,
        }
    }

    /// Whether a stream that is derived from the log may be read.
    pub(super) fn check_selector(&self, wanted: &Selector) -> Result<(), Denied> {
        let scope = wanted.scope.as_ref().map(bourn_protocol::Scope::as_str);
        let right = match wanted.kind {
            MessageKind::Change if wanted.old_values => Right::History,
            MessageKind::Change => Right::Read,
            MessageKind::Activity => Right::History,
        };
        match wanted.types.names() {
            Some(names) => names.iter().try_for_each(|name| self.check(right, name, scope)),
            // Every type, so the right to each.
            None => self.policy.types.keys().try_for_each(|name| self.check(right, name, scope)),
        }
    }

    pub(super) fn undo_right(&self) -> UndoRight {
        match &self.grant {
            Grant::Everything => UndoRight::Scope,
            Grant::Role { .. } => self.role().map_or(UndoRight::None, |role| role.undo),
            Grant::Letters { scopes, .. } if scopes.values().any(|letters| letters.has(Right::Undo)) => {
                UndoRight::Scope
            }
            Grant::Letters { .. } => UndoRight::None,
        }
    }

    /// Whether a column may be set.
    ///
    /// # Errors
    /// When it may not.
    pub fn check_column(&self, entity_type: &str, column: &str) -> Result<(), Denied> {
        match self.role() {
            Some(role) if !role.sets(entity_type, column) => Err(Denied::ColumnForbidden(column.to_owned())),
            _ => Ok(()),
        }
    }

    /// Whether the caller may say that it is this device.
    ///
    /// # Errors
    /// When the token is bound to another.
    pub fn check_client(&self, client: Option<&ClientId>) -> Result<(), Denied> {
        match &self.client {
            Some(bound) if client != Some(bound) => Err(Denied::ClientMismatch),
            _ => Ok(()),
        }
    }

    fn patterns(&self) -> &[(String, StreamRights)] {
        match &self.grant {
            Grant::Everything => &[],
            Grant::Role { .. } => self.role().map_or(&[], |role| &role.streams),
            Grant::Letters { streams, .. } => streams,
        }
    }

    /// Whether something may be done with a stored stream.
    ///
    /// # Errors
    /// When it may not.
    pub fn check_stream(&self, right: StreamRight, path: &StreamPath) -> Result<(), Denied> {
        let given = |pattern: &str| policy::matches(pattern, path.as_str(), self);
        self.check_pattern(right, given)
    }

    /// Whether all streams that a pattern matches may be read.
    ///
    /// # Errors
    /// When they may not.
    pub fn check_streams(&self, wanted: &str) -> Result<(), Denied> {
        self.check_pattern(StreamRight::Read, |pattern| policy::contains(pattern, wanted, self))
    }

    fn check_pattern(&self, right: StreamRight, given: impl Fn(&str) -> bool) -> Result<(), Denied> {
        if self.is_everything() {
            return Ok(());
        }
        let of_right = |rights: StreamRights| match right {
            StreamRight::Read => rights.read,
            StreamRight::Append => rights.append,
            StreamRight::Create => rights.create,
            StreamRight::Delete => rights.delete,
        };
        match self.patterns().iter().any(|(pattern, rights)| of_right(*rights) && given(pattern)) {
            true => Ok(()),
            false => Err(Denied::RightMissing(match right {
                StreamRight::Read => "read this stream".into(),
                StreamRight::Append => "append to this stream".into(),
                StreamRight::Create => "create this stream".into(),
                StreamRight::Delete => "delete this stream".into(),
            })),
        }
    }
}

impl Caller for Rights {
    fn has_scope(&self, scope: &str) -> bool {
        match &self.grant {
            Grant::Everything | Grant::Role { scopes: Scopes::Every, .. } => true,
            Grant::Role { scopes: Scopes::These(names), .. } => names.contains(scope),
            Grant::Letters { scopes, .. } => scopes.contains_key(scope) || scopes.contains_key(EVERY),
        }
    }

    fn is_subject(&self, subject: &str) -> bool {
        self.subject.as_deref() == Some(subject)
    }
}
