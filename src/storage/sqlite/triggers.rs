//! Capture on SQLite: triggers that write each change into the log inside the writer's own transaction,
//! whichever process that is. What was rolled back was never there; SQLite has one writer at a time, so the
//! order of the log is the order of commits.
//!
//! Two things a trigger cannot do, and who does them: it cannot know where a transaction ends (the
//! [sequencer](super::sequencer) marks that), and it does not fire for rows that `INSERT OR REPLACE` removes
//! unless the connection has `recursive_triggers` on. A replaced row of the same key is recognised here by the
//! log, which still has it alive.

use super::sql::{field, ident, key_text, literal, nameable, row_json, scope_text, transaction_of, visible};
use super::{clashes, unlogged};
use crate::entity::{EntityType, TableSchema};

/// The triggers of an entity type, as their names end.
pub(super) const EVENTS: [&str; 5] = ["insert", "hide", "update", "turn", "delete"];

pub(super) const NOW: &str = "strftime('%Y-%m-%dT%H:%M:%fZ', 'now')";

/// One trigger: its name and the statement that makes it.
pub(super) struct Trigger {
    pub(super) name: String,
    pub(super) sql: String,
}

/// The values of one activity, as SQL expressions.
pub(super) struct Entry<'a> {
    pub(super) action: String,
    /// Where key, scope and value come from: `NEW` or `OLD`.
    pub(super) row: &'a str,
    pub(super) transaction: String,
    pub(super) client: String,
    pub(super) changed_keys: String,
    pub(super) previous: Option<String>,
    /// `WHERE` and `FROM`, if the activity depends on more than the trigger's own condition.
    pub(super) from: String,
}

/// The triggers of an entity type whose table has these columns.
pub(super) fn all(entity: &EntityType, schema: &TableSchema) -> Vec<Trigger> {
    let maker = Maker { entity, schema };
    let hide = schema.kept.deleted_at.is_some().then(|| maker.hide());
    let own = [maker.insert(), maker.update(), maker.turn(), maker.delete()].into_iter().chain(hide);
    own.chain(unlogged::all(&maker)).chain(clashes::all(entity, schema)).collect()
}

/// The path of a column in a row's JSON.
fn json_path(column: &str) -> String {
    match column.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
        true => format!("$.{column}"),
        false => format!("$.\"{column}\""),
    }
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
        let (transaction, client) = self.inserted_by(&["update", "insert"]);
        // A row of this key that the log has alive was replaced without a trigger telling: if it was in
        // another scope, it has left that one.
        let moved = format!("a.organization_id IS NOT {}", self.scope("NEW"));
        let left = self.entity.scope.as_ref().map(|_| self.left_behind("NEW", &transaction, &client, &moved));
        let entered = self.entry(&Entry {
            action: format!("CASE WHEN EXISTS (SELECT 1 FROM {alive}) THEN 'update' ELSE 'create' END"),
            row: "NEW",
            transaction,
            client,
            changed_keys: "NULL".into(),
            previous: self.entity.previous_values.then(|| format!("(SELECT a.value FROM {alive})")),
            from: String::new(),
        });
        let body: Vec<String> = [self.feed("NEW")].into_iter().chain(left).chain([entered]).collect();
        self.trigger("insert", &visible(self.entity, self.schema, "NEW"), &body)
    }

    /// A row is replaced by one that is deleted softly.
    fn hide(&self) -> Trigger {
        let (transaction, client) = self.inserted_by(&["delete", "update", "insert"]);
        let named = nameable(self.entity, "NEW");
        let when = format!("({named}) AND NOT {}", visible(self.entity, self.schema, "NEW"));
        self.trigger("hide", &when, &[self.left_behind("NEW", &transaction, &client, "1")])
    }

    /// Ends what the log has alive under the row's key, if `condition` holds for it.
    pub(super) fn left_behind(&self, row: &str, transaction: &str, client: &str, condition: &str) -> String {
        let entry = Entry {
            action: "'delete'".into(),
            row,
            transaction: transaction.into(),
            client: client.into(),
            changed_keys: "NULL".into(),
            previous: self.entity.previous_values.then(|| "a.value".to_owned()),
            from: format!("FROM {}", self.logged(row, &format!("a.action <> 'delete' AND {condition}"))),
        };
        self.entry_of(&entry, "a.entity_id", "a.organization_id", "a.feed_id", "NULL")
    }

    /// Whose an inserted row is: the first of its ids that the last version of the key in the log had not. A row
    /// that was put back as it had been carries nobody's.
    fn inserted_by(&self, actions: &[&str]) -> (String, String) {
        let Some(ids) = &self.schema.kept.transactions else {
            return (self.context("transaction_id"), self.context("client_id"));
        };
        let ids = json_path(ids);
        let cases: Vec<String> = actions
            .iter()
            .map(|action| {
                let new = self.transaction("NEW", action);
                let known = format!(
                    "(SELECT CAST(json_extract(value, {}) AS TEXT) FROM activities \
                     WHERE entity_id = {} AND entity_type = {} AND value IS NOT NULL ORDER BY seq DESC LIMIT 1)",
                    literal(&format!("{ids}.{action}")),
                    key_text(self.entity, "NEW"),
                    literal(&self.entity.name)
                );
                format!("WHEN {new} IS NOT NULL AND {new} IS NOT {known} THEN {new}")
            })
            .collect();
        let transaction = format!("CASE {} END", cases.join(" "));
        let client = match &self.schema.kept.last_client_id {
            Some(column) => {
                let first = format!("NOT EXISTS (SELECT 1 FROM {})", self.logged("NEW", "1"));
                let client = field("NEW", column);
                format!("CASE WHEN {first} OR ({transaction}) IS NOT NULL THEN {client} END")
            }
            None => "NULL".into(),
        };
        (transaction, client)
    }

    /// The row stays what and where it is, and something in it changed.
    fn update(&self) -> Trigger {
        let (old, new) = (visible(self.entity, self.schema, "OLD"), visible(self.entity, self.schema, "NEW"));
        let when = format!(
            "{old} AND {new} AND NOT ({}) AND ({}) AND NOT ({})",
            self.moved(),
            self.changed(),
            self.announces_delete()
        );
        let updated = self.entry(&Entry {
            action: "'update'".into(),
            row: "NEW",
            transaction: self.changed_transaction(&["update"]),
            client: self.changed_client(&["update"]),
            changed_keys: self.changed_keys(),
            previous: self.previous(),
            from: String::new(),
        });
        self.trigger("update", &when, &[self.feed("NEW"), updated])
    }

    /// The row is deleted softly, or restored, or takes another key or scope: it leaves one place, and enters
    /// another.
    fn turn(&self) -> Trigger {
        let (old, new) = (visible(self.entity, self.schema, "OLD"), visible(self.entity, self.schema, "NEW"));
        let when = format!("({old}) <> ({new}) OR ({old} AND {new} AND ({}))", self.moved());
        let ids = ["delete", "update"];
        let left = self.entry(&Entry {
            action: "'delete'".into(),
            row: "OLD",
            transaction: self.changed_transaction(&ids),
            client: self.changed_client(&ids),
            changed_keys: "NULL".into(),
            previous: self.previous(),
            from: format!("WHERE {old}"),
        });
        let entered = self.entry(&Entry {
            action: "'create'".into(),
            row: "NEW",
            transaction: self.changed_transaction(&["update"]),
            client: self.changed_client(&["update"]),
            changed_keys: "NULL".into(),
            previous: None,
            from: format!("WHERE {new}"),
        });
        // A log that was not compared with the table may have something alive where the row comes to.
        let stale = format!("{} AND {new}", unlogged::not_compared(self.entity));
        let stale = self.left_behind("NEW", "NULL", "NULL", &stale);
        self.trigger("turn", &when, &[self.feed("OLD"), left, stale, self.feed("NEW"), entered])
    }

    fn delete(&self) -> Trigger {
        // The announcement of this delete, and not of an earlier one that was taken back since.
        let stamp = self.transaction("OLD", "delete");
        let used = format!(
            "EXISTS (SELECT 1 FROM activities WHERE transaction_id = {stamp} AND entity_id = {} AND entity_type = {})",
            key_text(self.entity, "OLD"),
            literal(&self.entity.name)
        );
        let stamped = format!("CASE WHEN {stamp} IS NOT NULL AND NOT {used} THEN {stamp} END");
        let client = match &self.schema.kept.last_client_id {
            Some(column) => format!("CASE WHEN {stamped} IS NOT NULL THEN {} END", field("OLD", column)),
            None => "NULL".into(),
        };
        let deleted = self.entry(&Entry {
            action: "'delete'".into(),
            row: "OLD",
            transaction: format!("coalesce({}, {stamped})", self.context("transaction_id")),
            client: format!(
                "CASE WHEN {} IS NOT NULL THEN {} ELSE {client} END",
                self.context("transaction_id"),
                self.context("client_id")
            ),
            changed_keys: "NULL".into(),
            previous: self.previous(),
            from: String::new(),
        });
        self.trigger("delete", &visible(self.entity, self.schema, "OLD"), &[self.feed("OLD"), deleted])
    }

    fn previous(&self) -> Option<String> {
        self.entity.previous_values.then(|| row_json(self.schema, "OLD"))
    }

    fn transaction(&self, alias: &str, action: &str) -> String {
        transaction_of(self.schema, alias, action)
    }

    /// The scope by which the feeds are told apart.
    pub(super) fn scope(&self, alias: &str) -> String {
        scope_text(self.entity, alias)
    }

    fn context(&self, column: &str) -> String {
        format!("(SELECT {column} FROM bourn_context)")
    }

    /// The last activity of the row's key, if `condition` holds for it; to stand after `FROM`.
    pub(super) fn logged(&self, alias: &str, condition: &str) -> String {
        format!(
            "(SELECT * FROM activities WHERE entity_id = {} AND entity_type = {} ORDER BY seq DESC LIMIT 1) a WHERE {condition}",
            key_text(self.entity, alias),
            literal(&self.entity.name)
        )
    }

    /// The first of the row's transaction ids that this statement changed. A writer that left `transactions`
    /// as it was knows nothing of them, and passes none on.
    fn changed_transaction(&self, actions: &[&str]) -> String {
        if self.schema.kept.transactions.is_none() {
            return self.context("transaction_id");
        }
        let cases: Vec<String> = actions
            .iter()
            .map(|action| {
                let (old, new) = (self.transaction("OLD", action), self.transaction("NEW", action));
                format!("WHEN {new} IS NOT {old} AND {new} IS NOT NULL THEN {new}")
            })
            .collect();
        format!("CASE {} END", cases.join(" "))
    }

    /// The client, where the statement gave a transaction id or another client than the row had.
    fn changed_client(&self, actions: &[&str]) -> String {
        let Some(column) = &self.schema.kept.last_client_id else { return self.context("client_id") };
        let (old, new) = (field("OLD", column), field("NEW", column));
        format!(
            "CASE WHEN {new} IS NOT {old} OR ({}) IS NOT NULL THEN {new} END",
            self.changed_transaction(actions)
        )
    }

    fn differs(column: &str) -> String {
        // Binary: under the column's own collation a change of case may be no change.
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

    /// Nothing changed but who is about to delete the row: the delete that follows says it.
    fn announces_delete(&self) -> String {
        let kept = &self.schema.kept;
        if kept.transactions.is_none() {
            return "0".into();
        }
        let (old, new) = (self.transaction("OLD", "delete"), self.transaction("NEW", "delete"));
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
        let update =
            format!("{} IS NOT {}", self.transaction("OLD", "update"), self.transaction("NEW", "update"));
        format!(
            "{new} IS NOT NULL AND {new} IS NOT {old} AND NOT ({update}) AND NOT ({})",
            groups.join(" OR ")
        )
    }

    /// Makes sure the row's feed has its number. Not `INSERT OR IGNORE`: an `OR REPLACE` of the outer
    /// statement would override that, and give the feed another number.
    pub(super) fn feed(&self, alias: &str) -> String {
        let (name, scope) = (literal(&self.entity.name), self.scope(alias));
        format!(
            "INSERT INTO bourn_feeds (entity_type, scope) SELECT {name}, coalesce({scope}, '') \
             WHERE NOT EXISTS (SELECT 1 FROM bourn_feeds WHERE entity_type = {name} AND scope = coalesce({scope}, ''));"
        )
    }

    pub(super) fn entry(&self, entry: &Entry<'_>) -> String {
        let scope = self.scope(entry.row);
        let feed = format!(
            "(SELECT id FROM bourn_feeds WHERE entity_type = {} AND scope = coalesce({scope}, ''))",
            literal(&self.entity.name)
        );
        let value = if entry.action == "'delete'" { "NULL".into() } else { row_json(self.schema, entry.row) };
        self.entry_of(entry, &key_text(self.entity, entry.row), &scope, &feed, &value)
    }

    fn entry_of(&self, entry: &Entry<'_>, key: &str, scope: &str, feed: &str, value: &str) -> String {
        let Entry { action, transaction, client, changed_keys, previous, from, .. } = entry;
        let previous = previous.as_deref().unwrap_or("NULL");
        format!(
            "INSERT INTO activities (action, entity_type, entity_id, feed_id, organization_id, transaction_id, client_id, \
             changed_keys, value, previous_values, created_at)\n\
             SELECT {action}, {name}, {key}, {feed}, {scope}, {transaction}, {client},\n{changed_keys},\n{value},\n{previous},\n{NOW} {from};",
            name = literal(&self.entity.name)
        )
    }
}
