//! What a database must do for subscriptions: store the state of each one whole, and replace it only if it is still the
//! one that was read. The database does not interpret the state.

use async_trait::async_trait;

use crate::storage_error::StorageError;

/// A subscription as the database has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredSubscription {
    /// Its id.
    pub id: String,
    /// Counts its changes; zero before it is first saved.
    pub version: i64,
    /// When it is due to be looked at even if nothing has happened, in Unix milliseconds.
    pub due_at: Option<i64>,
    /// Its state, as JSON.
    pub state: String,
}

/// The keys that sign what the server sends.
#[derive(Clone, PartialEq, Eq)]
pub struct Secrets {
    /// The seed of the webhooks' Ed25519 key.
    pub webhook: [u8; 32],
    /// The key of the tokens' HMAC.
    pub token: [u8; 32],
}

/// Subscriptions, for reading and changing.
#[async_trait]
pub trait SubscriptionStore: Send + Sync {
    /// The keys; drawn at the first call.
    async fn secrets(&self) -> Result<Secrets, StorageError>;

    /// One subscription.
    async fn subscription(&self, id: &str) -> Result<Option<StoredSubscription>, StorageError>;

    /// All of them.
    async fn subscriptions(&self) -> Result<Vec<StoredSubscription>, StorageError>;

    /// Those that are due by a time, the first first.
    async fn due_subscriptions(&self, by: i64, limit: usize)
    -> Result<Vec<StoredSubscription>, StorageError>;

    /// When the next one is due.
    async fn next_due_subscription(&self) -> Result<Option<i64>, StorageError>;

    /// Saves a state, if the stored one still has the given version; returns whether it did.
    async fn save_subscription(&self, subscription: StoredSubscription) -> Result<bool, StorageError>;

    /// Removes one; says whether there was one.
    async fn delete_subscription(&self, id: &str) -> Result<bool, StorageError>;
}
