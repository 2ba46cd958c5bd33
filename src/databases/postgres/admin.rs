//! The commands by which an operator checks and prepares a database before serving it: what is missing, and which SQL
//! adds it.

use bourn_protocol::Epoch;
use sqlx::{AssertSqlSafe, PgConnection, Row};

use super::connections::{Db, scalar, statement};
use super::log::{history, stops};
use super::names::ident;
use super::tables::catalog::{self, Identity};
use super::{error, migrate, refresh};
use crate::config::{Config, DatabaseUrl, Limits};
use crate::databases::{Finding, OpenError};
use crate::feed::Condition;
use crate::feed::entity::Catalog;

/// Rows to be passed over that `bourn check` lists, at most.
const SKIPPED_SHOWN: usize = 20;
/// Characters of a database's name that go into the name of its slot.
const SLOT_NAME_MAX: usize = 50;

/// The settings with the name of the slot; the default contains the database's name.
pub(super) fn named(limits: &Limits, db: &Db) -> Limits {
    let mut limits = limits.clone();
    if limits.slot.is_empty() {
        limits.slot = slot_of(db.direct().get_database().unwrap_or_else(|| db.direct().get_username()));
    }
    limits
}

/// The name of the slot for a database: slots belong to the cluster.
fn slot_of(database: &str) -> String {
    let fits = |c: char| if c.is_ascii_lowercase() || c.is_ascii_digit() { c } else { '_' };
    let plain: String = database.to_lowercase().chars().map(fits).take(SLOT_NAME_MAX).collect();
    format!("bourn_{plain}")
}

async fn connect(url: &str, limits: &Limits) -> Result<(PgConnection, String, Limits), OpenError> {
    let shown = DatabaseUrl::Postgres(url.into()).shown();
    let failed = |e: sqlx::Error| OpenError::new(&shown, &error::advice(&e));
    let db = Db::new(url, limits).map_err(failed)?;
    let mut connection = db.connect_directly().await.map_err(failed)?;
    match migrate::unfit(&mut connection).await.map_err(failed)? {
        Some(reason) => Err(OpenError::new(&shown, &reason)),
        None => Ok((connection, shown, named(limits, &db))),
    }
}

/// Looks at the database without changing it.
///
/// # Errors
/// When it cannot be reached or read.
pub async fn check(url: &str, config: &Config) -> Result<Vec<Finding>, OpenError> {
    let (mut connection, shown, limits) = connect(url, &config.limits).await?;
    look(&mut connection, config, &limits).await.map_err(|e| OpenError::new(&shown, &error::advice(&e)))
}

async fn look(
    connection: &mut PgConnection,
    config: &Config,
    limits: &Limits,
) -> Result<Vec<Finding>, sqlx::Error> {
    let mut findings = Vec::new();
    let mut add = |fine: bool, text: String| findings.push(Finding { fine, text });
    let row = statement(
        "SELECT current_setting('server_version'), current_setting('wal_level'), r.rolreplication OR r.rolsuper, current_user::text, \
         current_setting('max_slot_wal_keep_size'), current_setting('max_replication_slots')::int8 - (SELECT count(*) FROM pg_replication_slots), \
         (SELECT s.plugin || CASE WHEN s.database = current_database() THEN '' ELSE ' of another database' END \
          FROM pg_replication_slots s WHERE s.slot_name = $1), \
         (SELECT s.wal_status FROM pg_replication_slots s WHERE s.slot_name = $1), \
         (SELECT p.pubinsert AND p.pubupdate AND p.pubdelete AND p.pubtruncate AND p.pubviaroot FROM pg_publication p WHERE p.pubname = $2), \
         has_database_privilege(current_database(), 'CREATE') OR coalesce(has_schema_privilege(to_regnamespace('bourn')::oid, 'CREATE'), false) \
         FROM pg_roles r WHERE r.rolname = current_user",
    )
    .bind(&limits.slot)
    .bind(&limits.publication)
    .fetch_one(&mut *connection)
    .await?;
    add(true, format!("PostgreSQL {}", row.try_get::<String, _>(0)?));
    let level: String = row.try_get(1)?;
    match level.as_str() {
        "logical" => add(true, "wal_level is `logical`".into()),
        level => add(
            false,
            format!(
                "wal_level is `{level}`: ALTER SYSTEM SET wal_level = 'logical', and restart the database"
            ),
        ),
    }
    let role: String = row.try_get(3)?;
    match row.try_get(2)? {
        true => add(true, format!("role `{role}` may replicate")),
        false => {
            add(false, format!("role `{role}` may not replicate: ALTER ROLE {} REPLICATION", ident(&role)));
        }
    }
    if let Some(forbidden) = history::forbidden(connection).await? {
        add(false, forbidden);
    }
    let slot = &limits.slot;
    match (row.try_get::<Option<String>, _>(6)?, row.try_get::<Option<String>, _>(7)?) {
        (None, _) if row.try_get::<i64, _>(5)? <= 0 => {
            add(false, "there is no room for a replication slot: raise max_replication_slots, and restart the database".into());
        }
        (None, _) => add(true, format!("slot `{slot}` is missing; `bourn serve` will make it")),
        (Some(_), Some(status)) if status == "lost" => {
            add(
                true,
                format!(
                    "slot `{slot}` was given up by the database; `bourn serve` will recreate it and compare every table"
                ),
            );
        }
        (Some(plugin), _) if plugin == "pgoutput" => add(true, format!("slot `{slot}` is there")),
        (Some(plugin), _) => add(false, format!("slot `{slot}` is for {plugin}; name another with `slot`")),
    }
    let keep: String = row.try_get(4)?;
    if keep == "-1" {
        add(true, "max_slot_wal_keep_size is not set: while no server captures, the database keeps its write-ahead log without end".into());
    }
    match migrate::migrated(connection).await? {
        0 if row.try_get(9)? => add(
            true,
            "the log's tables are missing; `bourn serve` or `bourn prepare --apply` will make them".into(),
        ),
        0 => add(
            false,
            format!(
                "the log's tables are missing and role `{role}` may not make them: CREATE SCHEMA bourn AUTHORIZATION {}",
                ident(&role)
            ),
        ),
        _ => add(true, "the log's tables are there".into()),
    }
    let publication = &limits.publication;
    match row.try_get::<Option<bool>, _>(8)? {
        Some(true) => add(true, format!("publication `{publication}` is there")),
        Some(false) => add(
            false,
            format!(
                "publication `{publication}` leaves things out: ALTER PUBLICATION {} SET (publish = 'insert, update, delete, truncate', publish_via_partition_root = true)",
                ident(publication)
            ),
        ),
        None => {
            add(false, format!("publication `{publication}` is missing; `bourn prepare --apply` makes it"));
        }
    }
    if migrate::migrated(connection).await? >= stops::SINCE {
        for stop in stops::read(connection).await? {
            let Condition { entity_type, reason, remedy, .. } = stop.condition();
            add(
                false,
                format!("{entity_type}: capture has stopped at row `{}`: {reason}; {remedy}", stop.key),
            );
        }
        for (name, key) in stops::skipped(connection).await?.into_iter().take(SKIPPED_SHOWN) {
            add(true, format!("{name}: row `{key}` is passed over where the log refuses it"));
        }
    }
    let mut seen = Vec::new();
    for entity in Catalog::new(&config.entities).iter() {
        let name = &entity.name;
        let table = match catalog::table(connection, entity, publication).await? {
            Err(reason) => {
                add(false, format!("{name}: {reason}"));
                continue;
            }
            Ok(table) => table,
        };
        add(true, format!("{name}: table {} with {} columns", table.sql, table.columns.len()));
        let mut reasons = refresh::unfit(connection, entity, publication, &table).await?;
        reasons.extend(refresh::taken(
            &table,
            seen.iter().map(|(name, id): &(String, u32)| (name.as_str(), *id)),
        ));
        for reason in reasons {
            add(false, format!("{name}: {reason}"));
        }
        seen.push((name.to_string(), table.id));
        if table.identity == Identity::Key {
            add(
                true,
                format!(
                    "{name}: the replica identity is the key: old values are looked up in the log; ALTER TABLE {} REPLICA IDENTITY FULL saves that",
                    table.sql
                ),
            );
        }
        for text in &table.checked.left_alone {
            add(true, format!("{name}: {text}"));
        }
        let kept = &table.checked.kept;
        let lacks = [
            (
                kept.transactions.is_none(),
                "transactions",
                "writers in SQL give transaction ids by pg_logical_emit_message",
            ),
            (
                kept.last_client_id.is_none(),
                "last_client_id",
                "writers in SQL say by pg_logical_emit_message which client they write for",
            ),
            (kept.deleted_at.is_none(), "deleted_at", "rows are deleted for good"),
        ];
        for (_, column, consequence) in lacks.into_iter().filter(|(lacking, ..)| *lacking) {
            add(true, format!("{name}: no column serves as `{column}`: {consequence}"));
        }
    }
    Ok(findings)
}

/// Ends the stop of an entity type: the row that stopped it is passed over for as long as the log refuses it, and the
/// table is compared with the log. Returns that row's key.
///
/// # Errors
/// When the database cannot be reached or written, or the entity type has not stopped.
pub async fn skip(url: &str, limits: &Limits, entity_type: &str) -> Result<String, OpenError> {
    let (mut connection, shown, _) = connect(url, limits).await?;
    let skipped = stops::skip(&mut connection, entity_type).await;
    skipped.map_err(|e| OpenError::new(&shown, &error::advice(&e)))?.ok_or_else(|| {
        OpenError::new(
            &shown,
            &format!("capture of `{entity_type}` has not stopped; `bourn check` lists what has"),
        )
    })
}

/// The SQL that prepares the database: the log's tables, replica identities and the publication.
///
/// # Errors
/// When it cannot be reached or read.
pub async fn prepare_sql(url: &str, config: &Config) -> Result<String, OpenError> {
    let (mut connection, shown, limits) = connect(url, &config.limits).await?;
    let failed = |e: sqlx::Error| OpenError::new(&shown, &error::advice(&e));
    let make_demo = config.demo && migrate::is_new(&mut connection).await.map_err(failed)?;
    let mut sql = String::from("BEGIN;\n");
    if make_demo {
        sql.push_str(&migrate::demo_sql());
    }
    let done = migrate::migrated(&mut connection).await.map_err(failed)?;
    sql.push_str(&migrate::preparation(done, Epoch::draw()));
    let catalog = Catalog::new(&config.entities);
    if make_demo {
        // The publication exists in this transaction alone, to find out what it would need.
        let mut transaction = sqlx::Connection::begin(&mut connection).await.map_err(failed)?;
        sqlx::raw_sql(AssertSqlSafe(migrate::demo_sql())).execute(&mut *transaction).await.map_err(failed)?;
        sql.push_str(&publishing(&mut transaction, &limits, &catalog).await.map_err(failed)?);
        transaction.rollback().await.map_err(failed)?;
    } else {
        sql.push_str(&publishing(&mut connection, &limits, &catalog).await.map_err(failed)?);
    }
    for statement in privileges(&mut connection).await.map_err(failed)? {
        sql.push_str(&format!("{statement}\n"));
    }
    sql.push_str("COMMIT;");
    Ok(sql)
}

/// The statements that grant the server's role the rights it lacks on the server's own tables.
async fn privileges(connection: &mut PgConnection) -> Result<Vec<String>, sqlx::Error> {
    let lacking: Option<String> = scalar(
        "SELECT rolname::text FROM pg_roles WHERE rolname = current_user AND NOT rolreplication AND NOT rolsuper",
    )
    .fetch_optional(connection)
    .await?;
    Ok(lacking.into_iter().map(|role| format!("ALTER ROLE {} REPLICATION;", ident(&role))).collect())
}

/// The statements that make the replication stream carry the changes of all tables.
async fn publishing(
    connection: &mut PgConnection,
    limits: &Limits,
    catalog: &Catalog,
) -> Result<String, sqlx::Error> {
    let publication = &limits.publication;
    let whole: Option<bool> = scalar(
        "SELECT pubinsert AND pubupdate AND pubdelete AND pubtruncate AND pubviaroot FROM pg_publication WHERE pubname = $1",
    )
    .bind(publication)
    .fetch_optional(&mut *connection)
    .await?;
    let mut sql = String::new();
    match whole {
        None => sql.push_str(&format!("CREATE PUBLICATION {} WITH (publish_via_partition_root = true);\n", ident(publication))),
        Some(false) => sql.push_str(&format!(
            "ALTER PUBLICATION {} SET (publish = 'insert, update, delete, truncate', publish_via_partition_root = true);\n",
            ident(publication)
        )),
        Some(true) => {}
    }
    let mut published: Vec<(&str, u32)> = Vec::new();
    for entity in catalog.iter() {
        match catalog::table(connection, entity, publication).await? {
            Err(reason) => sql.push_str(&format!("-- {}: {reason}\n", entity.name)),
            Ok(table) => {
                if let Some(reason) = refresh::taken(&table, published.iter().copied()) {
                    sql.push_str(&format!("-- {}: {reason}\n", entity.name));
                    continue;
                }
                published.push((&*entity.name, table.id));
                for statement in refresh::mending(connection, publication, &table).await? {
                    sql.push_str(&format!("{statement}\n"));
                }
            }
        }
    }
    Ok(sql)
}

/// Does what [`prepare_sql`] prints; returns what was done, and what another role has left to do.
///
/// # Errors
/// When it cannot be reached or written.
pub async fn prepare(url: &str, config: &Config) -> Result<Vec<String>, OpenError> {
    let (mut connection, shown, limits) = connect(url, &config.limits).await?;
    let failed = |e: sqlx::Error| OpenError::new(&shown, &error::advice(&e));
    let db = Db::new(url, &limits).map_err(failed)?;
    let mut report = Vec::new();
    let before = migrate::migrated(&mut connection).await.map_err(failed)?;
    let new = config.demo && migrate::is_new(&mut connection).await.map_err(failed)?;
    migrate::migrate(&db, config.demo).await.map_err(failed)?;
    if new {
        report.push("done: the demo's tables".to_owned());
    }
    let after = migrate::migrated(&mut connection).await.map_err(failed)?;
    if after > before {
        report.push(format!("done: the log's tables in schema `bourn`, version {after}"));
    }
    let catalog = Catalog::new(&config.entities);
    let done = publish(&mut connection, &limits, &catalog).await.map_err(failed)?;
    report.extend(done.lines().map(|line| match line.strip_prefix("-- ") {
        Some(reason) => format!("left: {reason}"),
        None => format!("done: {line}"),
    }));
    for statement in privileges(&mut connection).await.map_err(failed)? {
        let granted = sqlx::raw_sql(AssertSqlSafe(statement.clone())).execute(&mut connection).await;
        report.push(match granted {
            Ok(_) => format!("done: {statement}"),
            Err(failure) if error::code(&failure).as_deref() == Some("42501") => {
                format!("left: {statement} -- a superuser has to run this")
            }
            Err(failure) => return Err(failed(failure)),
        });
    }
    if report.is_empty() {
        report.push("nothing to do: the database is prepared".to_owned());
    }
    Ok(report)
}

async fn publish(
    connection: &mut PgConnection,
    limits: &Limits,
    catalog: &Catalog,
) -> Result<String, sqlx::Error> {
    let mut transaction = sqlx::Connection::begin(connection).await?;
    // Another server may be preparing it at the same time.
    statement("SELECT pg_advisory_xact_lock($1)")
        .bind(migrate::MIGRATION_LOCK)
        .execute(&mut *transaction)
        .await?;
    let sql = publishing(&mut transaction, limits, catalog).await?;
    sqlx::raw_sql(AssertSqlSafe(sql.clone())).execute(&mut *transaction).await?;
    transaction.commit().await?;
    Ok(sql)
}

/// The demo needs no operator: its tables are published as they are made.
pub(super) async fn prepare_demo(
    connection: &mut PgConnection,
    limits: &Limits,
    catalog: &Catalog,
) -> Result<(), sqlx::Error> {
    publish(connection, limits, catalog).await.map(|_| ())
}
