-- The log and what belongs to it. `{epoch}` is drawn when the log is created.

CREATE TABLE bourn_log (
  id      INTEGER PRIMARY KEY CHECK (id = 1),
  epoch   TEXT    NOT NULL,
  -- Offsets below this one are gone.
  horizon INTEGER NOT NULL DEFAULT 0
);
INSERT INTO bourn_log (id, epoch) VALUES (1, '{epoch}');

-- A small number for each pair of entity type and scope, so that their index stays narrow.
CREATE TABLE bourn_feeds (
  id          INTEGER PRIMARY KEY,
  entity_type TEXT NOT NULL,
  scope       TEXT NOT NULL,
  UNIQUE (entity_type, scope)
);

-- One row for every committed change of one row, in commit order: SQLite has one writer at a time.
-- AUTOINCREMENT, because a seq must not come back when the newest rows are removed.
CREATE TABLE activities (
  seq             INTEGER PRIMARY KEY AUTOINCREMENT,
  id              TEXT GENERATED ALWAYS AS ('{epoch}_' || printf('%016d', seq)) VIRTUAL,
  type            TEXT GENERATED ALWAYS AS (entity_type || '.' || action || 'd') VIRTUAL,
  action          TEXT    NOT NULL,
  entity_type     TEXT    NOT NULL,
  entity_id       TEXT    NOT NULL,
  feed_id         INTEGER NOT NULL,
  organization_id TEXT,
  transaction_id  TEXT,
  client_id       TEXT,
  changed_keys    TEXT,
  value           TEXT,
  previous_values TEXT,
  -- The seq of its database transaction's last activity; empty until the sequencer has seen the commit.
  commit_id       INTEGER,
  -- Of what it is its transaction's last change: 1 of its feed, 2 of its entity type.
  last            INTEGER NOT NULL DEFAULT 0,
  created_at      TEXT    NOT NULL
);
CREATE INDEX activities_entity_type ON activities (entity_type);
CREATE INDEX activities_feed        ON activities (feed_id);
CREATE INDEX activities_entity      ON activities (entity_id);
CREATE INDEX activities_transaction ON activities (transaction_id) WHERE transaction_id IS NOT NULL;
CREATE INDEX activities_client      ON activities (client_id)      WHERE client_id      IS NOT NULL;

-- Mutations done, for retries. Rows expire in the order they came.
CREATE TABLE bourn_ledger (
  id             INTEGER PRIMARY KEY,
  transaction_id TEXT    NOT NULL UNIQUE,
  operation      TEXT    NOT NULL,
  entity_type    TEXT    NOT NULL,
  entity_id      TEXT    NOT NULL,
  fingerprint    BLOB    NOT NULL,
  -- The head of the log when it was done: nothing of the mutation comes after it.
  seq            INTEGER NOT NULL,
  outcome        TEXT,
  expires_at     INTEGER NOT NULL
);

-- Who is writing, where the row itself cannot say so: set and cleared inside one transaction.
CREATE TABLE bourn_context (
  id             INTEGER PRIMARY KEY CHECK (id = 1),
  transaction_id TEXT,
  client_id      TEXT
);
INSERT INTO bourn_context (id) VALUES (1);

-- Which entity types the log is known to have as their tables are; the others are to be compared.
CREATE TABLE bourn_entities (
  entity_type TEXT    PRIMARY KEY,
  reconciled  INTEGER NOT NULL
);
