//! Capture on SQLite: triggers that write each change into the log inside the writer's own transaction, in whichever
//! process. A change that is rolled back never appears; SQLite has one writer at a time, so the order of the log is the
//! order of commits.
//!
//! A trigger cannot know where a transaction ends; the [sequencer](crate::databases::sqlite::file::sequencer) marks
//! that. Nor does it fire for rows that `INSERT OR REPLACE` removes, unless the connection has `recursive_triggers` on:
//! a replaced row of the same key is recognised here by the log, which still has it alive.

mod clashes;
pub(super) mod installed;
#[cfg(test)]
mod transitions;
mod unlogged;

use super::payload;
use super::sql::{field, ident, key_text, literal, nameable, scope_text, shown, transaction_of, visible};
use bourn_protocol::Action;

use crate::feed::entity::{EntityType, TableSchema};

/// The triggers of an entity type, as their names end; an older version made one for each.
pub(super) const EVENTS: [&str; 5] = ["insert", "hide", "update", "turn", "delete"];

pub(super) const NOW: &str = "strftime('%Y-%m-%dT%H:%M:%fZ', 'now')";

/// One trigger: its name and the statement that makes it.
pub(super) struct Trigger {
    pub(super) name: String,
    pub(super) sql: String,
}

/// The values of one activity, as SQL expressions.
pub(super) struct ActivitySql<'a> {
    pub(super) action: String,
    /// Where key, scope and value come from: `NEW` or `OLD`.
    pub(super) row: &'a str,
    /// How the row says which transaction and client made the change: `how` of the view that activities are written
    /// through.
    pub(super) how: char,
    pub(super) changed_keys: String,
    pub(super) previous: Option<String>,
    /// `WHERE` and `FROM`, if the activity depends on more than the trigger's own condition.
    pub(super) from: String,
}

/// The triggers of an entity type whose table has these columns.
pub(super) fn all(entity: &EntityType, schema: &TableSchema) -> Vec<Trigger> {
    let maker = Maker { entity, schema };
    let hide = schema.kept.deleted_at.is_some().then(|| maker.hide());
    let own = [maker.insert(), maker.update(), maker.delete()].into_iter().chain(hide);
    own.chain(unlogged::all(&maker)).chain(clashes::all(entity, schema)).collect()
}

pub(super) fn name(entity: &EntityType, event: &str) -> String {
    format!("bourn_{}__{event}", entity.name)
}

/// Makes the triggers of one entity type.
pub(super) struct Maker<'a> {
    pub(super) entity: &'a EntityType,
    pub(super) schema: &'a TableSchema,
}

impl Maker<'_> {
    fn trigger(&self, event: &str, when: &str, body: &[String]) -> Trigger {
        let name = name(self.entity, event);
        let verb = match event {
            "insert" | "hide" => "INSERT",
            "delete" => "DELETE",
            _ => "UPDATE",
        };
        let sql = format!(
            "CREATE TRIGGER {} AFTER {verb} ON {} FOR EACH ROW WHEN {when}\nBEGIN\n{}\nEND",
            ident(&name),
            ident(&self.entity.table),
            body.join("\n")
        );
        Trigger { name, sql }
    }

    fn insert(&self) -> Trigger {
        let alive = self.logged("NEW", "a.action <> 'delete'");
        // A row of this key that the log has alive was replaced without a trigger: if it was in another scope, it has
        // left that one.
        let moved = format!("a.organization_id IS NOT {}", self.scope("NEW"));
        let left = self.entity.scope.as_ref().map(|_| self.left_behind("NEW", 'i', &moved));
        let entered = self.entry(&ActivitySql {
            action: format!("CASE WHEN EXISTS (SELECT 1 FROM {alive}) THEN 'update' ELSE 'create' END"),
            row: "NEW",
            how: 'i',
            changed_keys: "NULL".into(),
            previous: self.entity.previous_values.then(|| format!("(SELECT a.value FROM {alive})")),
            from: String::new(),
        });
        let body: Vec<String> = left.into_iter().chain([entered]).collect();
        self.trigger("insert", &visible(self.entity, self.schema, "NEW"), &body)
    }

    /// The trigger for a row that is replaced by one that is deleted softly.
    fn hide(&self) -> Trigger {
        let named = nameable(self.entity, "NEW");
        let when = format!("({named}) AND NOT {}", shown(self.schema, "NEW"));
        self.trigger("hide", &when, &[self.left_behind("NEW", 'h', "1")])
    }

    /// Logs a deletion of what the log has alive under the row's key, if `condition` holds for it.
    pub(super) fn left_behind(&self, row: &str, how: char, condition: &str) -> String {
        let entry = ActivitySql {
            action: "'delete'".into(),
            row,
            how,
            changed_keys: "NULL".into(),
            previous: self.entity.previous_values.then(|| "a.value".to_owned()),
            from: format!("FROM {}", self.logged(row, &format!("a.action <> 'delete' AND {condition}"))),
        };
        self.entry_of(&entry, "a.entity_id", "a.organization_id", "NULL")
    }

    /// How the row says which transaction and client made the change, and the values that say it.
    fn ids(&self, how: char) -> String {
        if how == 'n' {
            return "'n', NULL, NULL, NULL, NULL".into();
        }
        let kept = &self.schema.kept;
        let has_old_and_new = matches!(how, 'u' | 't');
        if kept.transactions.is_none() && (kept.last_client_id.is_none() || !has_old_and_new) {
            return "NULL, NULL, NULL, NULL, NULL".into();
        }
        let of = |alias: &str, column: &Option<String>, there: bool| match column {
            Some(column) if there => field(alias, column),
            _ => "NULL".into(),
        };
        let (old, new) = (has_old_and_new || how == 'd', how != 'd');
        format!(
            "'{how}{}', {}, {}, {}, {}",
            if kept.last_client_id.is_some() { "c" } else { "" },
            of("OLD", &kept.transactions, old),
            of("NEW", &kept.transactions, new),
            of("OLD", &kept.last_client_id, old),
            of("NEW", &kept.last_client_id, new)
        )
    }

    /// The trigger for an update. If the row is deleted softly, or restored, or takes another key or scope, it leaves
    /// one place, and enters another.
    fn update(&self) -> Trigger {
        let (old, new) = (visible(self.entity, self.schema, "OLD"), visible(self.entity, self.schema, "NEW"));
        let turned = match self.schema.kept.deleted_at {
            Some(_) => {
                let (old, new) = (shown(self.schema, "OLD"), shown(self.schema, "NEW"));
                format!("({} OR ({old}) <> ({new}))", self.moved())
            }
            None => format!("({})", self.moved()),
        };
        let when = match self.schema.kept.transactions {
            Some(_) => format!("({}) AND NOT ({})", self.changed(), self.announces_delete()),
            None => self.changed(),
        };
        let left = self.entry(&ActivitySql {
            action: "'delete'".into(),
            row: "OLD",
            how: 't',
            changed_keys: "NULL".into(),
            previous: self.previous(),
            from: format!("WHERE {turned} AND {old}"),
        });
        let entered_or_changed = self.entry(&ActivitySql {
            action: format!("CASE WHEN {turned} THEN 'create' ELSE 'update' END"),
            row: "NEW",
            how: 'u',
            changed_keys: format!("CASE WHEN NOT {turned} THEN {} END", self.changed_keys()),
            previous: self.previous().map(|previous| format!("CASE WHEN NOT {turned} THEN {previous} END")),
            // A row that stays in its place was visible before if it is visible now.
            from: format!("WHERE {new}"),
        });
        self.trigger("update", &when, &[left, entered_or_changed])
    }

    fn delete(&self) -> Trigger {
        let deleted = self.entry(&ActivitySql {
            action: "'delete'".into(),
            row: "OLD",
            how: 'd',
            changed_keys: "NULL".into(),
            previous: self.previous(),
            from: String::new(),
        });
        self.trigger("delete", &visible(self.entity, self.schema, "OLD"), &[deleted])
    }

    fn previous(&self) -> Option<String> {
        self.entity.previous_values.then(|| payload::row(self.schema, "OLD"))
    }

    fn transaction(&self, alias: &str, action: Action) -> String {
        transaction_of(self.schema, alias, action)
    }

    /// The scope by which the feeds are told apart.
    pub(super) fn scope(&self, alias: &str) -> String {
        scope_text(self.entity, self.schema, alias)
    }

    /// The last activity of the row's key, if `condition` holds for it; to stand after `FROM`.
    pub(super) fn logged(&self, alias: &str, condition: &str) -> String {
        format!(
            "(SELECT * FROM activities WHERE entity_id = {} AND entity_type = {} ORDER BY seq DESC LIMIT 1) a WHERE {condition}",
            key_text(self.entity, self.schema, alias),
            literal(&self.entity.name)
        )
    }

    pub(super) fn differs(column: &str) -> String {
        // Binary: under the column's own collation a change of case may count as no change.
        format!("{} COLLATE BINARY IS NOT {}", field("OLD", column), field("NEW", column))
    }

    fn changed(&self) -> String {
        let columns: Vec<String> =
            self.schema.columns.iter().map(|column| Self::differs(&column.name)).collect();
        let groups: Vec<String> =
            columns.chunks(20).map(|group| format!("({})", group.join(" OR "))).collect();
        groups.join(" OR ")
    }

    fn changed_keys(&self) -> String {
        let keys: Vec<String> = self
            .schema
            .columns
            .iter()
            .filter(|column| !self.schema.kept.is_bookkeeping(&column.name))
            .map(|column| {
                let name = serde_json::Value::String(column.name.clone()).to_string();
                format!(
                    "CASE WHEN {} THEN {} ELSE '' END",
                    Self::differs(&column.name),
                    literal(&format!(",{name}"))
                )
            })
            .collect();
        let groups: Vec<String> = keys.chunks(20).map(|group| format!("({})", group.join(" || "))).collect();
        format!("'[' || substr({}, 2) || ']'", groups.join(" || "))
    }

    /// The row takes another key or another scope.
    fn moved(&self) -> String {
        let key = Self::differs(&self.entity.key);
        match &self.entity.scope {
            Some(scope) => format!("{key} OR {}", Self::differs(scope)),
            None => key,
        }
    }

    /// The update only names who is about to delete the row: the delete that follows carries that.
    fn announces_delete(&self) -> String {
        let kept = &self.schema.kept;
        let (old, new) = (self.transaction("OLD", Action::Delete), self.transaction("NEW", Action::Delete));
        let quiet = [&kept.transactions, &kept.last_client_id];
        let others: Vec<String> = self
            .schema
            .columns
            .iter()
            .filter(|column| !quiet.iter().any(|name| name.as_ref() == Some(&column.name)))
            .map(|column| Self::differs(&column.name))
            .collect();
        let groups: Vec<String> =
            others.chunks(20).map(|group| format!("({})", group.join(" OR "))).collect();
        let update = format!(
            "{} IS NOT {}",
            self.transaction("OLD", Action::Update),
            self.transaction("NEW", Action::Update)
        );
        format!(
            "{new} IS NOT NULL AND {new} IS NOT {old} AND NOT ({update}) AND NOT ({})",
            groups.join(" OR ")
        )
    }

    pub(super) fn entry(&self, entry: &ActivitySql<'_>) -> String {
        let value =
            if entry.action == "'delete'" { "NULL".into() } else { payload::row(self.schema, entry.row) };
        self.entry_of(entry, &key_text(self.entity, self.schema, entry.row), &self.scope(entry.row), &value)
    }

    fn entry_of(&self, entry: &ActivitySql<'_>, key: &str, scope: &str, value: &str) -> String {
        let ActivitySql { action, how, changed_keys, previous, from, .. } = entry;
        let previous = previous.as_deref().unwrap_or("NULL");
        format!(
            "INSERT INTO bourn_entries\nSELECT {action}, {name}, {key}, {scope}, {ids},\n{changed_keys},\n{value},\n\
             {previous} {from};",
            name = literal(&self.entity.name),
            ids = self.ids(*how)
        )
    }
}
