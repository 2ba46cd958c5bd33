-- What retention needs: how far it has come, and what it took out of the streams.

-- Offsets of a feed's streams below this one are gone: a deletion that followed them is not kept any more.
ALTER TABLE bourn_feeds ADD COLUMN horizon INTEGER NOT NULL DEFAULT 0;
CREATE INDEX bourn_feeds_horizon ON bourn_feeds (entity_type, horizon);

-- Activities up to here were looked at.
ALTER TABLE bourn_log ADD COLUMN pruned INTEGER NOT NULL DEFAULT 0;
-- Grows whenever something was taken out.
ALTER TABLE bourn_log ADD COLUMN generation INTEGER NOT NULL DEFAULT 0;

-- Activities that left the streams, without their payload.
CREATE TABLE bourn_audit (
  seq             INTEGER PRIMARY KEY,
  action          TEXT    NOT NULL,
  entity_type     TEXT    NOT NULL,
  entity_id       TEXT    NOT NULL,
  organization_id TEXT,
  transaction_id  TEXT,
  client_id       TEXT,
  changed_keys    TEXT,
  commit_id       INTEGER NOT NULL,
  created_at      TEXT    NOT NULL
);
CREATE INDEX bourn_audit_entity      ON bourn_audit (entity_id);
CREATE INDEX bourn_audit_transaction ON bourn_audit (transaction_id) WHERE transaction_id IS NOT NULL;
CREATE INDEX bourn_audit_client      ON bourn_audit (client_id)      WHERE client_id      IS NOT NULL;
CREATE INDEX bourn_audit_created     ON bourn_audit (created_at);
