//! Subscriptions on PostgreSQL: one row each, which any server replaces only if it is still the one that was read.

use async_trait::async_trait;
use sqlx::Row;
use sqlx::postgres::PgRow;

use super::PostgresStorage;
use super::connections::{scalar, statement};
use crate::storage_error::StorageError;
use crate::streams::{Secrets, StoredSubscription, SubscriptionStore};

fn read(row: &PgRow) -> Result<StoredSubscription, sqlx::Error> {
    Ok(StoredSubscription {
        id: row.try_get(0)?,
        version: row.try_get(1)?,
        due_at: row.try_get(2)?,
        state: row.try_get(3)?,
    })
}

impl PostgresStorage {
    async fn try_secrets(&self) -> Result<Option<Secrets>, sqlx::Error> {
        let mut reading = self.inner.db.single().await?;
        let rows = statement("SELECT name, value FROM bourn.secrets").fetch_all(reading.connection()).await?;
        let key = |wanted: &str| {
            let row = rows.iter().find(|row| row.try_get::<&str, _>(0).is_ok_and(|name| name == wanted));
            row.and_then(|row| row.try_get::<&[u8], _>(1).ok()?.try_into().ok())
        };
        Ok(key("webhook").zip(key("token")).map(|(webhook, token)| Secrets { webhook, token }))
    }

    async fn draw_secrets(&self) -> Result<(), sqlx::Error> {
        let drawn: [[u8; 32]; 2] = [rand::random(), rand::random()];
        let mut changing = self.inner.db.single().await?;
        statement("INSERT INTO bourn.secrets VALUES ('webhook', $1), ('token', $2) ON CONFLICT DO NOTHING")
            .bind(&drawn[0][..])
            .bind(&drawn[1][..])
            .execute(changing.connection())
            .await?;
        changing.commit().await
    }

    async fn try_save(&self, subscription: &StoredSubscription) -> Result<bool, sqlx::Error> {
        let mut changing = self.inner.db.single().await?;
        let sql = match subscription.version {
            0 => {
                "INSERT INTO bourn.subscriptions (id, version, due_at, state) VALUES ($1, $2 + 1, $3, $4) \
                 ON CONFLICT (id) DO NOTHING"
            }
            _ => {
                "UPDATE bourn.subscriptions SET version = version + 1, due_at = $3, state = $4 \
                 WHERE id = $1 AND version = $2"
            }
        };
        let saved = statement(sql)
            .bind(&subscription.id)
            .bind(subscription.version)
            .bind(subscription.due_at)
            .bind(&subscription.state)
            .execute(changing.connection())
            .await?;
        changing.commit().await?;
        Ok(saved.rows_affected() > 0)
    }

    async fn try_delete(&self, id: &str) -> Result<bool, sqlx::Error> {
        let mut changing = self.inner.db.single().await?;
        let removed = statement("DELETE FROM bourn.subscriptions WHERE id = $1")
            .bind(id)
            .execute(changing.connection())
            .await?;
        changing.commit().await?;
        Ok(removed.rows_affected() > 0)
    }

    async fn select(
        &self,
        sql: &'static str,
        bind: impl FnOnce(SubscriptionQuery) -> SubscriptionQuery + Send,
    ) -> Result<Vec<StoredSubscription>, StorageError> {
        let select = async {
            let mut reading = self.inner.db.single().await?;
            let rows = bind(statement(sql)).fetch_all(reading.connection()).await?;
            rows.iter().map(read).collect::<Result<_, sqlx::Error>>()
        };
        self.serve(select).await
    }
}

type SubscriptionQuery = sqlx::query::Query<'static, sqlx::Postgres, sqlx::postgres::PgArguments>;

#[async_trait]
impl SubscriptionStore for PostgresStorage {
    async fn secrets(&self) -> Result<Secrets, StorageError> {
        let secrets = async {
            if let Some(there) = self.try_secrets().await? {
                return Ok(Some(there));
            }
            self.draw_secrets().await?;
            self.try_secrets().await
        };
        self.serve(secrets).await?.ok_or(StorageError::Unavailable)
    }

    async fn subscription(&self, id: &str) -> Result<Option<StoredSubscription>, StorageError> {
        let id = id.to_owned();
        let sql = "SELECT id, version, due_at, state FROM bourn.subscriptions WHERE id = $1";
        Ok(self.select(sql, |query| query.bind(id)).await?.pop())
    }

    async fn subscriptions(&self) -> Result<Vec<StoredSubscription>, StorageError> {
        let sql = "SELECT id, version, due_at, state FROM bourn.subscriptions ORDER BY id";
        self.select(sql, |query| query).await
    }

    async fn due_subscriptions(
        &self,
        by: i64,
        limit: usize,
    ) -> Result<Vec<StoredSubscription>, StorageError> {
        let sql = "SELECT id, version, due_at, state FROM bourn.subscriptions WHERE due_at <= $1 ORDER BY due_at LIMIT $2";
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        self.select(sql, |query| query.bind(by).bind(limit)).await
    }

    async fn next_due_subscription(&self) -> Result<Option<i64>, StorageError> {
        let select = async {
            let mut reading = self.inner.db.single().await?;
            scalar("SELECT min(due_at) FROM bourn.subscriptions").fetch_one(reading.connection()).await
        };
        self.serve(select).await
    }

    async fn save_subscription(&self, subscription: StoredSubscription) -> Result<bool, StorageError> {
        self.serve(self.try_save(&subscription)).await
    }

    async fn delete_subscription(&self, id: &str) -> Result<bool, StorageError> {
        self.serve(self.try_delete(id)).await
    }
}
