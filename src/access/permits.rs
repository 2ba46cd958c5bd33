//! Proofs that something may be read or written. Only [`Rights`](super::Rights) make them, and what reads and writes takes
//! nothing else.

use std::ops::Deref;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bourn_protocol::{Selector, StreamPath};

use super::rights::{Denied, Right, Rights, StreamRight};
use crate::config::UndoRight;

/// What can be asked to be read, and knows which rights that takes.
pub trait Guarded {
    /// Whether a caller with these rights may read it.
    ///
    /// # Errors
    /// What is missing.
    fn check(&self, rights: &Rights) -> Result<(), Denied>;
}

/// Something that a caller may read.
#[derive(Debug, Clone)]
pub struct Permitted<T> {
    wanted: T,
    expires: Option<u64>,
}

impl<T> Permitted<T> {
    pub(super) fn new(wanted: T, expires: Option<u64>) -> Permitted<T> {
        Permitted { wanted, expires }
    }

    /// How long it may be read from now on; none where that has no end.
    #[must_use]
    pub fn time_left(&self) -> Option<Duration> {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.expires.map(|expires| Duration::from_secs(expires).saturating_sub(since))
    }

    /// What may be read.
    #[must_use]
    pub fn into_inner(self) -> T {
        self.wanted
    }
}

impl<T> Deref for Permitted<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.wanted
    }
}

/// What was read for a caller and is not to be looked at before the caller may see it: a row, whose scope is known only
/// once it is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sealed<T> {
    entity_type: Arc<str>,
    scope: Option<String>,
    content: T,
}

impl<T> Sealed<T> {
    /// The content of a row of this type and scope.
    pub fn new(entity_type: Arc<str>, scope: Option<String>, content: T) -> Sealed<T> {
        Sealed { entity_type, scope, content }
    }

    /// The content, if a caller with these rights may see it.
    pub fn open(self, rights: &Rights) -> Option<T> {
        rights.check_row(Right::Read, &self.entity_type, self.scope.as_deref()).ok().map(|()| self.content)
    }
}

/// A caller may write; which rows is checked with each, in the transaction that writes it.
#[derive(Debug, Clone)]
pub struct WritePermit {
    rights: Arc<Rights>,
}

impl WritePermit {
    pub(super) fn new(rights: Arc<Rights>) -> WritePermit {
        WritePermit { rights }
    }

    /// The caller, as the audit trail names it.
    #[must_use]
    pub fn subject(&self) -> Option<&str> {
        self.rights.subject.as_deref()
    }

    /// Whether a row's scope has to be looked at.
    #[must_use]
    pub fn is_unlimited(&self) -> bool {
        self.rights.is_everything()
    }

    /// Whether the caller may see anything of a row.
    #[must_use]
    pub fn may_see(&self, entity_type: &str, scope: Option<&str>) -> bool {
        self.rights.check_row(Right::Read, entity_type, scope).is_ok()
    }

    /// Whether a row of this scope may be written.
    ///
    /// # Errors
    /// What is missing.
    pub fn check_row(&self, entity_type: &str, scope: Option<&str>) -> Result<(), Denied> {
        self.rights.check_row(Right::Write, entity_type, scope)
    }

    /// Whether a change of a row of this scope may be undone that `subject` made.
    ///
    /// # Errors
    /// What is missing.
    pub fn check_undo(
        &self,
        entity_type: &str,
        scope: Option<&str>,
        subject: Option<&str>,
    ) -> Result<(), Denied> {
        self.rights.check_row(Right::Undo, entity_type, scope)?;
        let own = self.rights.subject.is_some() && self.rights.subject.as_deref() == subject;
        match self.rights.undo_right() {
            UndoRight::Scope => Ok(()),
            UndoRight::Own if own => Ok(()),
            UndoRight::Own | UndoRight::None => {
                Err(Denied::RightMissing("undo transactions of others".into()))
            }
        }
    }
}

impl Rights {
    /// Permits what is wanted to be read.
    ///
    /// # Errors
    /// What is missing.
    pub fn read<T: Guarded>(&self, wanted: T) -> Result<Permitted<T>, Denied> {
        wanted.check(self).map(|()| Permitted::new(wanted, self.expires))
    }

    /// Permits rows of a type to be written; in which scopes is checked with the row.
    ///
    /// # Errors
    /// When they may be written in none.
    pub fn write(self: &Arc<Self>, entity_type: &str) -> Result<WritePermit, Denied> {
        self.check_some(Right::Write, entity_type).map(|()| WritePermit::new(self.clone()))
    }

    /// Permits transactions to be undone; which is checked with their changes.
    ///
    /// # Errors
    /// When none may be.
    pub fn undo(self: &Arc<Self>) -> Result<WritePermit, Denied> {
        let missing = || Denied::RightMissing("undo transactions".into());
        match self.undo_right() {
            UndoRight::None => Err(missing()),
            UndoRight::Own | UndoRight::Scope => Ok(WritePermit::new(self.clone())),
        }
    }
}

impl Guarded for Selector {
    fn check(&self, rights: &Rights) -> Result<(), Denied> {
        rights.check_selector(self)
    }
}

impl Guarded for StreamPath {
    fn check(&self, rights: &Rights) -> Result<(), Denied> {
        rights.check_stream(StreamRight::Read, self)
    }
}
