-- The log and what belongs to it, in a schema of its own. `{epoch}` is drawn when the log is created.

CREATE TABLE bourn.log (
  id       smallint PRIMARY KEY CHECK (id = 1),
  epoch    text     NOT NULL,
  -- The last activity.
  head     bigint   NOT NULL DEFAULT 0,
  -- Offsets below this one are gone.
  horizon  bigint   NOT NULL DEFAULT 0,
  -- Raised by every server that begins to capture: one that was superseded finds that it does not match.
  fence    bigint   NOT NULL DEFAULT 0,
  -- What was committed before this place of the write-ahead log is in our log; empty before the slot is made.
  position pg_lsn,
  -- Whose write-ahead log that is: a database that was restored elsewhere has another one.
  source   text,
  -- What was committed before this place was never told, and is in our log by comparing.
  told_from pg_lsn,
  -- Transactions of activities up to here were another source's.
  foreign_until bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 10);
INSERT INTO bourn.log (id, epoch) VALUES (1, '{epoch}');

-- A small number for each pair of entity type and scope, so that their index stays narrow.
CREATE TABLE bourn.feeds (
  id          integer PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
  entity_type text NOT NULL,
  scope       text COLLATE "C" NOT NULL,
  UNIQUE (scope, entity_type)
);

-- One row for every committed change of one row, in commit order: the one appender assigns the seq.
-- Payloads are text, because jsonb would not give back the same bytes.
CREATE TABLE bourn.activities (
  seq             bigint   NOT NULL PRIMARY KEY,
  action          text     NOT NULL,
  entity_type     text     NOT NULL,
  entity_id       text     COLLATE "C" NOT NULL,
  feed_id         integer  NOT NULL,
  organization_id text,
  transaction_id  text     COLLATE "C",
  client_id       text     COLLATE "C",
  changed_keys    text,
  value           text,
  previous_values text,
  -- The number of the database transaction that made the change, epoch included.
  commit_id       bigint   NOT NULL,
  -- Of what it is its transaction's last change: 1 of its feed, 2 of its entity type.
  last            smallint NOT NULL,
  created_at      timestamptz NOT NULL
);
CREATE INDEX activities_entity_type ON bourn.activities (entity_type, seq);
CREATE INDEX activities_feed        ON bourn.activities (feed_id, seq);
CREATE INDEX activities_entity      ON bourn.activities (entity_id, entity_type, seq);
CREATE INDEX activities_transaction ON bourn.activities (transaction_id) WHERE transaction_id IS NOT NULL;
CREATE INDEX activities_client      ON bourn.activities (client_id, seq) WHERE client_id IS NOT NULL;
CREATE INDEX activities_commit      ON bourn.activities USING brin (commit_id) WITH (pages_per_range = 16, autosummarize = on);

-- The log as a person reads it.
CREATE VIEW bourn.history AS
  SELECT seq, '{epoch}_' || lpad(seq::text, 16, '0') AS id, entity_type || '.' || action || 'd' AS type, action, entity_type,
         entity_id, organization_id, transaction_id, client_id, changed_keys, value, previous_values, commit_id, created_at
  FROM bourn.activities;

-- Mutations done, for retries.
CREATE TABLE bourn.ledger (
  transaction_id text COLLATE "C" PRIMARY KEY,
  operation      text  NOT NULL,
  entity_type    text  NOT NULL,
  entity_id      text  NOT NULL,
  fingerprint    bytea NOT NULL,
  -- Where in the write-ahead log it was begun.
  position       pg_lsn NOT NULL,
  -- How far the log reached when capture found that it changed nothing that the log shows.
  confirmed      bigint,
  outcome        text,
  expires_at     timestamptz NOT NULL
);
CREATE INDEX ledger_expires ON bourn.ledger (expires_at);

-- Which entity types the log is known to have as their tables are, and how far the comparing of the others has come.
CREATE TABLE bourn.entities (
  entity_type text PRIMARY KEY,
  -- What the table looked like: where that changes, table and log are compared anew.
  signature   text    NOT NULL,
  reconciled  boolean NOT NULL DEFAULT false,
  -- Comparing begins when every transaction before this one has ended.
  wait_for    bigint  NOT NULL DEFAULT 0,
  -- The log had nothing of this type when comparing began.
  from_empty  boolean NOT NULL DEFAULT false,
  -- The last key that was compared; empty at the beginning.
  after_key   text,
  -- The last place of the log whose key was looked for; empty while the table's rows are compared.
  after_seq   bigint,
  compared    bigint  NOT NULL DEFAULT 0
);
