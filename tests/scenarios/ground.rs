//! Where a scenario takes place: on SQLite or on PostgreSQL, with as many servers of one database as it wants.

use bourn_testkit::{Cluster, Database, PgBouncer};
use tempfile::TempDir;

use crate::support::{Bourn, sqlite_url};

pub trait Ground {
    /// A new database.
    fn new() -> Self;
    /// One more server of it, with these settings.
    async fn server(&self, settings: &[(&str, &str)]) -> Bourn;
}

/// A file.
pub struct Sqlite(TempDir);

impl Ground for Sqlite {
    fn new() -> Sqlite {
        Sqlite(tempfile::tempdir().unwrap())
    }

    async fn server(&self, settings: &[(&str, &str)]) -> Bourn {
        Bourn::start_on(&sqlite_url(&self.0.path().join("bourn.db")), settings).await
    }
}

/// A database of the shared cluster.
pub struct Postgres(Database);

impl Ground for Postgres {
    fn new() -> Postgres {
        Postgres(Cluster::shared().database())
    }

    async fn server(&self, settings: &[(&str, &str)]) -> Bourn {
        let slot = format!("slot_{}", self.0.name());
        Bourn::start_on(&self.0.url(), &[settings, &[("slot", &slot)]].concat()).await
    }
}

/// A database of the shared cluster, behind a pooler that gives a connection to each transaction.
pub struct Pooled {
    pooler: PgBouncer,
    database: Database,
}

impl Ground for Pooled {
    fn new() -> Pooled {
        Pooled { pooler: PgBouncer::start(Cluster::shared()), database: Cluster::shared().database() }
    }

    async fn server(&self, settings: &[(&str, &str)]) -> Bourn {
        let (slot, direct) = (format!("slot_{}", self.database.name()), self.database.url());
        let settings = [settings, &[("slot", &slot), ("direct_database", &direct)]].concat();
        Bourn::start_on(&self.pooler.url(self.database.name()), &settings).await
    }
}
