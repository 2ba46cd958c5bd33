//! One committed change of one row, and the two messages it becomes: the change message of an entity stream
//! (Durable State protocol, section 4.1) and the activity of the activities stream. The row's own JSON is
//! copied as it is stored; nothing is parsed.

use crate::json::{push_number, push_string};
use crate::offset::{Epoch, Offset, Seq};

/// What a change did to its row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// The row was created, or became visible again.
    Create,
    /// The row changed.
    Update,
    /// The row was deleted, or marked as deleted.
    Delete,
}

impl Action {
    /// The word in the log and in activities.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Action::Create => "create",
            Action::Update => "update",
            Action::Delete => "delete",
        }
    }

    /// The word in `headers.operation` of a change message.
    #[must_use]
    pub const fn operation(self) -> &'static str {
        match self {
            Action::Create => "insert",
            Action::Update => "update",
            Action::Delete => "delete",
        }
    }

    /// Reads the log's word back.
    #[must_use]
    pub fn from_log(word: &str) -> Option<Action> {
        [Action::Create, Action::Update, Action::Delete].into_iter().find(|action| action.as_str() == word)
    }
}

/// Which of its two messages a stream makes of an activity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MessageKind {
    /// A change message, for entity streams.
    Change,
    /// An activity, for the activities stream.
    Activity,
}

/// Whether a change is the last one that its database transaction makes of its entity type, and of its scope.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Last {
    /// The last of its entity type.
    pub of_type: bool,
    /// The last of its entity type and scope.
    pub of_scope: bool,
}

impl Last {
    /// The marks as the log keeps them: 1 for the scope, 2 for the type.
    #[must_use]
    pub const fn from_log(bits: i64) -> Last {
        Last { of_type: bits & 2 != 0, of_scope: bits & 1 != 0 }
    }
}

/// How a stream words its messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Wording {
    /// Which message it makes of an activity.
    pub kind: MessageKind,
    /// Whether the stream is one scope's, so that `last` refers to the scope.
    pub scoped: bool,
    /// Whether messages carry the values that rows had before.
    pub old_values: bool,
}

/// One activity as the log holds it, borrowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ActivityRef<'a> {
    /// Its place in the log.
    pub seq: Seq,
    /// What the change did.
    pub action: Action,
    /// The entity type's name, `page`.
    pub entity_type: &'a str,
    /// The row's key as text.
    pub entity_id: &'a str,
    /// The row's scope, where its type has one.
    pub organization_id: Option<&'a str>,
    /// The mutation's id, where the writer gave one.
    pub transaction_id: Option<&'a str>,
    /// The device the mutation came from.
    pub client_id: Option<&'a str>,
    /// A JSON array of the columns that changed; for updates.
    pub changed_keys: Option<&'a str>,
    /// The whole row after the change, as a JSON object; none for a delete.
    pub value: Option<&'a str>,
    /// The whole row before the change, where the type keeps it.
    pub previous_values: Option<&'a str>,
    /// The number of the database transaction that made the change.
    pub commit_id: i64,
    /// Whether this is the transaction's last change of its entity type, and of its scope.
    pub last: Last,
    /// When it was committed, ISO 8601 in UTC.
    pub created_at: &'a str,
    /// The caller whose token the change was made with, where there was one.
    pub subject: Option<&'a str>,
}

impl ActivityRef<'_> {
    /// Appends the message in the wanted wording, as one JSON object.
    pub fn encode(&self, wording: Wording, epoch: Epoch, out: &mut Vec<u8>) {
        let previous_values = self.previous_values.filter(|_| wording.old_values);
        let shown = ActivityRef { previous_values, ..*self };
        match wording.kind {
            MessageKind::Change => {
                shown.encode_change(if wording.scoped { self.last.of_scope } else { self.last.of_type }, out);
            }
            MessageKind::Activity => shown.encode_activity(epoch, out),
        }
    }

    fn encode_change(&self, last: bool, out: &mut Vec<u8>) {
        out.extend_from_slice(b"{\"type\":");
        push_string(out, self.entity_type);
        out.extend_from_slice(b",\"key\":");
        push_string(out, self.entity_id);
        if self.action != Action::Delete
            && let Some(value) = self.value
        {
            out.extend_from_slice(b",\"value\":");
            out.extend_from_slice(value.as_bytes());
        }
        if let Some(previous) = self.previous_values {
            out.extend_from_slice(b",\"old_value\":");
            out.extend_from_slice(previous.as_bytes());
        }
        out.extend_from_slice(b",\"headers\":{\"operation\":\"");
        out.extend_from_slice(self.action.operation().as_bytes());
        out.extend_from_slice(b"\",\"txid\":");
        match self.transaction_id {
            Some(id) => push_string(out, id),
            None => push_string(out, &self.commit_id.to_string()),
        }
        out.extend_from_slice(b",\"timestamp\":");
        push_string(out, self.created_at);
        out.extend_from_slice(b",\"seq\":");
        push_number(out, self.seq.get());
        if let Some(client) = self.client_id {
            out.extend_from_slice(b",\"client_id\":");
            push_string(out, client);
        }
        if let Some(keys) = self.changed_keys {
            out.extend_from_slice(b",\"changed_keys\":");
            out.extend_from_slice(keys.as_bytes());
        }
        if last {
            out.extend_from_slice(b",\"last\":true");
        }
        out.extend_from_slice(b"}}");
    }

    fn encode_activity(&self, epoch: Epoch, out: &mut Vec<u8>) {
        out.extend_from_slice(b"{\"id\":");
        push_string(out, &Offset::new(epoch, self.seq).to_string());
        out.extend_from_slice(b",\"seq\":");
        push_number(out, self.seq.get());
        out.extend_from_slice(b",\"type\":");
        push_string(out, &format!("{}.{}d", self.entity_type, self.action.as_str()));
        out.extend_from_slice(b",\"action\":\"");
        out.extend_from_slice(self.action.as_str().as_bytes());
        out.extend_from_slice(b"\",\"entityType\":");
        push_string(out, self.entity_type);
        out.extend_from_slice(b",\"entityId\":");
        push_string(out, self.entity_id);
        for (name, text) in [
            (&b",\"organizationId\":"[..], self.organization_id),
            (b",\"transactionId\":", self.transaction_id),
            (b",\"clientId\":", self.client_id),
        ] {
            out.extend_from_slice(name);
            match text {
                Some(text) => push_string(out, text),
                None => out.extend_from_slice(b"null"),
            }
        }
        out.extend_from_slice(b",\"changedKeys\":");
        out.extend_from_slice(self.changed_keys.unwrap_or("null").as_bytes());
        if let Some(previous) = self.previous_values {
            out.extend_from_slice(b",\"previousValues\":");
            out.extend_from_slice(previous.as_bytes());
        }
        if let Some(subject) = self.subject {
            out.extend_from_slice(b",\"subject\":");
            push_string(out, subject);
        }
        out.extend_from_slice(b",\"createdAt\":");
        push_string(out, self.created_at);
        out.push(b'}');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn update() -> ActivityRef<'static> {
        ActivityRef {
            seq: Seq::new(1234).unwrap(),
            action: Action::Update,
            entity_type: "page",
            entity_id: "p1",
            organization_id: Some("acme"),
            transaction_id: Some("lz2x8g-a1b2c3d4e5f6"),
            client_id: Some("c1"),
            changed_keys: Some(r#"["name"]"#),
            value: Some(r#"{"id":"p1","name":"Bourn"}"#),
            previous_values: None,
            commit_id: 1234,
            last: Last { of_type: true, of_scope: true },
            created_at: "2026-01-15T10:30:00.123Z",
            subject: None,
        }
    }

    fn encoded(activity: &ActivityRef<'_>, kind: MessageKind) -> String {
        let mut out = Vec::new();
        activity.encode(Wording { kind, scoped: false, old_values: true }, "k3f9".parse().unwrap(), &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn an_update_becomes_a_durable_state_change_message() {
        assert_eq!(
            encoded(&update(), MessageKind::Change),
            concat!(
                r#"{"type":"page","key":"p1","value":{"id":"p1","name":"Bourn"},"#,
                r#""headers":{"operation":"update","txid":"lz2x8g-a1b2c3d4e5f6","#,
                r#""timestamp":"2026-01-15T10:30:00.123Z","seq":1234,"client_id":"c1","#,
                r#""changed_keys":["name"],"last":true}}"#
            )
        );
    }

    #[test]
    fn a_delete_has_no_value_and_a_nameless_writer_is_told_by_the_commit() {
        let delete = ActivityRef {
            action: Action::Delete,
            transaction_id: None,
            client_id: None,
            changed_keys: None,
            previous_values: Some(r#"{"id":"p1"}"#),
            last: Last::default(),
            ..update()
        };
        assert_eq!(
            encoded(&delete, MessageKind::Change),
            concat!(
                r#"{"type":"page","key":"p1","old_value":{"id":"p1"},"headers":{"operation":"delete","txid":"1234","#,
                r#""timestamp":"2026-01-15T10:30:00.123Z","seq":1234}}"#
            )
        );
    }

    #[test]
    fn the_activities_stream_tells_who_did_what() {
        assert_eq!(
            encoded(&update(), MessageKind::Activity),
            concat!(
                r#"{"id":"k3f9_0000000000001234","seq":1234,"type":"page.updated","action":"update","entityType":"page","#,
                r#""entityId":"p1","organizationId":"acme","transactionId":"lz2x8g-a1b2c3d4e5f6","clientId":"c1","#,
                r#""changedKeys":["name"],"createdAt":"2026-01-15T10:30:00.123Z"}"#
            )
        );
    }
}
