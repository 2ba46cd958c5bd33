//! Capture on SQLite: triggers that write each change into the log inside the writer's own transaction,
//! whichever process that is. What was rolled back was never there; SQLite has one writer at a time, so the
//! order of the log is the order of commits.
//!
//! Two things a trigger cannot do, and who does them: it cannot know where a transaction ends (the
//! [sequencer](super::sequencer) marks that), and it does not fire for rows that `INSERT OR REPLACE` removes
//! unless the connection has `recursive_triggers` on. A replaced row of the same key is recognised here by the
//! log, which still has it alive.

use rusqlite::{Connection, OptionalExtension};
use sha2::{Digest, Sha256};

use super::sql::{field, ident, key_text, literal, nameable, scope_text, shown, transaction_of, visible};
use super::{clashes, payload};
use crate::entity::{EntityType, TableSchema};

/// The triggers of an entity type, as their names end; an older version made one for each.
const EVENTS: [&str; 5] = ["insert", "hide", "update", "turn", "delete"];

pub(super) const NOW: &str = "strftime('%Y-%m-%dT%H:%M:%fZ', 'now')";

/// One trigger: its name and the statement that makes it.
pub(super) struct Trigger {
    pub(super) name: String,
    pub(super) sql: String,
}

/// The values of one activity, as SQL expressions.
struct Entry<'a> {
    action: String,
    /// Where key, scope and value come from: `NEW` or `OLD`.
    row: &'a str,
    /// How the row tells whose the change is: `how` of the view that entries are written through.
    how: char,
    changed_keys: String,
    previous: Option<String>,
    /// `WHERE` and `FROM`, if the activity depends on more than the trigger's own condition.
    from: String,
}

/// The triggers of an entity type whose table has these columns.
pub(super) fn all(entity: &EntityType, schema: &TableSchema) -> Vec<Trigger> {
    let maker = Maker { entity, schema };
    let hide = schema.kept.deleted_at.is_some().then(|| maker.hide());
    let own = [maker.insert(), maker.update(), maker.delete()].into_iter().chain(hide);
    own.chain(clashes::all(entity, schema)).collect()
}

/// The triggers that are there.
pub(super) struct Found {
    /// By name, with their statements.
    installed: Vec<(String, String)>,
    /// They are the wanted ones.
    pub(super) fit: bool,
    /// The table is to be compared with the log, because changes may have been missed.
    pub(super) compare: bool,
    /// Another server made them, for another configuration than this one's.
    pub(super) others: bool,
}

/// Looks which triggers there are.
pub(super) fn look(
    connection: &Connection,
    entity: &EntityType,
    wanted: &[Trigger],
) -> rusqlite::Result<Found> {
    let names: Vec<String> =
        EVENTS.iter().chain(&clashes::EVENTS).map(|event| literal(&name(entity, event))).collect();
    let installed: Vec<(String, String, i64)> = connection
        .prepare(&format!(
            "SELECT name, sql, rowid FROM sqlite_master WHERE type = 'trigger' AND name IN ({})",
            names.join(", ")
        ))?
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?
        .collect::<Result<_, _>>()?;
    // SQLite fires the newest trigger first. Ours must be that: one of the application's that changes the row once
    // more would be logged before the change it follows.
    let newer: bool = connection
        .prepare_cached(
            "SELECT EXISTS (SELECT 1 FROM sqlite_master WHERE type = 'trigger' AND tbl_name = ?1 COLLATE NOCASE \
             AND rowid > ?2 AND name NOT LIKE 'bourn\\_%' ESCAPE '\\')",
        )?
        .query_row(
            rusqlite::params![entity.table, installed.iter().map(|(.., rowid)| *rowid).min().unwrap_or(i64::MAX)],
            |row| row.get(0),
        )?;
    // A trigger on a renamed table keeps its name and is rewritten by SQLite, so it differs and goes.
    let fit = !newer
        && installed.len() == wanted.len()
        && wanted.iter().all(|trigger| {
            installed.iter().any(|(name, sql, _)| *name == trigger.name && *sql == trigger.sql)
        });
    let known: Option<(bool, Option<String>)> = connection
        .prepare_cached("SELECT reconciled, triggers FROM bourn_entities WHERE entity_type = ?1")?
        .query_row([&*entity.name], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    let (reconciled, made) = known.unwrap_or_default();
    let installed: Vec<_> = installed.into_iter().map(|(name, sql, _)| (name, sql)).collect();
    // As a server made them, but not as this one makes them.
    let there = digest(installed.iter().map(|(name, sql)| (name.as_str(), sql.as_str())));
    let others = !fit && made.is_some_and(|made| made == there && made != digest_of(wanted));
    Ok(Found { installed, fit, compare: !reconciled, others })
}

/// Drops and makes triggers so that exactly the wanted ones are there; says whether the table is to be compared
/// with the log. Inside the caller's transaction.
pub(super) fn install(
    connection: &Connection,
    entity: &EntityType,
    wanted: &[Trigger],
) -> rusqlite::Result<bool> {
    let found = look(connection, entity, wanted)?;
    if found.fit {
        return Ok(found.compare);
    }
    for (name, _) in found.installed {
        connection.execute_batch(&format!("DROP TRIGGER {}", ident(&name)))?;
    }
    for trigger in wanted {
        connection.execute_batch(&trigger.sql)?;
    }
    set_reconciled(connection, entity, false)?;
    connection
        .prepare_cached("UPDATE bourn_entities SET triggers = ?2 WHERE entity_type = ?1")?
        .execute([&*entity.name, &digest_of(wanted)])?;
    Ok(true)
}

fn digest_of(wanted: &[Trigger]) -> String {
    digest(wanted.iter().map(|trigger| (trigger.name.as_str(), trigger.sql.as_str())))
}

/// What tells these triggers from others.
fn digest<'a>(triggers: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    let mut triggers: Vec<_> = triggers.collect();
    triggers.sort_unstable();
    let mut hash = Sha256::new();
    for (name, sql) in triggers {
        hash.update(name);
        hash.update([0]);
        hash.update(sql);
        hash.update([0]);
    }
    hash.finalize()[..8].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Notes whether the log has the entity type's table as it is.
pub(super) fn set_reconciled(
    connection: &Connection,
    entity: &EntityType,
    reconciled: bool,
) -> rusqlite::Result<()> {
    connection
        .prepare_cached(
            "INSERT INTO bourn_entities (entity_type, reconciled) VALUES (?1, ?2) \
             ON CONFLICT (entity_type) DO UPDATE SET reconciled = ?2",
        )?
        .execute(rusqlite::params![&*entity.name, reconciled])?;
    Ok(())
}

pub(super) fn name(entity: &EntityType, event: &str) -> String {
    format!("bourn_{}__{event}", entity.name)
}

struct Maker<'a> {
    entity: &'a EntityType,
    schema: &'a TableSchema,
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
        // A row of this key that the log has alive was replaced without a trigger telling: if it was in
        // another scope, it has left that one.
        let moved = format!("a.organization_id IS NOT {}", self.scope("NEW"));
        let left = self.entity.scope.as_ref().map(|_| self.left_behind('i', &moved));
        let entered = self.entry(&Entry {
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

    /// A row is replaced by one that is deleted softly.
    fn hide(&self) -> Trigger {
        let named = nameable(self.entity, "NEW");
        let when = format!("({named}) AND NOT {}", shown(self.schema, "NEW"));
        self.trigger("hide", &when, &[self.left_behind('h', "1")])
    }

    /// Ends what the log has alive under the new row's key, if `condition` holds for it.
    fn left_behind(&self, how: char, condition: &str) -> String {
        let entry = Entry {
            action: "'delete'".into(),
            row: "NEW",
            how,
            changed_keys: "NULL".into(),
            previous: self.entity.previous_values.then(|| "a.value".to_owned()),
            from: format!("FROM {}", self.logged("NEW", &format!("a.action <> 'delete' AND {condition}"))),
        };
        self.entry_of(&entry, "a.entity_id", "a.organization_id", "NULL")
    }

    /// How the row tells whose the change is, and what it tells.
    fn ids(&self, how: char) -> String {
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

    /// Something in the row changed. If it is deleted softly, or restored, or takes another key or scope, it leaves one
    /// place, and enters another.
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
        let left = self.entry(&Entry {
            action: "'delete'".into(),
            row: "OLD",
            how: 't',
            changed_keys: "NULL".into(),
            previous: self.previous(),
            from: format!("WHERE {turned} AND {old}"),
        });
        let entered_or_changed = self.entry(&Entry {
            action: format!("CASE WHEN {turned} THEN 'create' ELSE 'update' END"),
            row: "NEW",
            how: 'u',
            changed_keys: format!("CASE WHEN NOT {turned} THEN {} END", self.changed_keys()),
            previous: self.previous().map(|previous| format!("CASE WHEN NOT {turned} THEN {previous} END")),
            // Where the row stays in its place, the old one is to be seen if the new one is.
            from: format!("WHERE {new}"),
        });
        self.trigger("update", &when, &[left, entered_or_changed])
    }

    fn delete(&self) -> Trigger {
        let deleted = self.entry(&Entry {
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

    fn transaction(&self, alias: &str, action: &str) -> String {
        transaction_of(self.schema, alias, action)
    }

    /// The scope by which the feeds are told apart.
    fn scope(&self, alias: &str) -> String {
        scope_text(self.entity, self.schema, alias)
    }

    /// The last activity of the row's key, if `condition` holds for it; to stand after `FROM`.
    fn logged(&self, alias: &str, condition: &str) -> String {
        format!(
            "(SELECT * FROM activities WHERE entity_id = {} AND entity_type = {} ORDER BY seq DESC LIMIT 1) a WHERE {condition}",
            key_text(self.entity, self.schema, alias),
            literal(&self.entity.name)
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

    fn entry(&self, entry: &Entry<'_>) -> String {
        let value =
            if entry.action == "'delete'" { "NULL".into() } else { payload::row(self.schema, entry.row) };
        self.entry_of(entry, &key_text(self.entity, self.schema, entry.row), &self.scope(entry.row), &value)
    }

    fn entry_of(&self, entry: &Entry<'_>, key: &str, scope: &str, value: &str) -> String {
        let Entry { action, how, changed_keys, previous, from, .. } = entry;
        let previous = previous.as_deref().unwrap_or("NULL");
        format!(
            "INSERT INTO bourn_entries\nSELECT {action}, {name}, {key}, {scope}, {ids},\n{changed_keys},\n{value},\n\
             {previous} {from};",
            name = literal(&self.entity.name),
            ids = self.ids(*how)
        )
    }
}
