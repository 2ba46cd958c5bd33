//! What a database must do for subscriptions: keep each one's state whole, and change it only as it was read. What the
//! state means is the business of those who keep it.

use async_trait::async_trait;

use crate::storage_error::StorageError;

/// A subscription as the database has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredSubscription {
    /// Its id.
    pub id: String,
    /// Counts its changes; zero before it is first saved.
    pub version: i64,
    /// When it wants to be looked at without anything having happened, in Unix milliseconds.
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
    /// The keys; drawn when they are first asked for.
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

    /// Saves a state, if the database's is still of the version given; says whether it did.
    async fn save_subscription(&self, subscription: StoredSubscription) -> Result<bool, StorageError>;

    /// Removes one; says whether there was one.
    async fn delete_subscription(&self, id: &str) -> Result<bool, StorageError>;
}
