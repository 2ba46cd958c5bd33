-- What retention needs: how far it has come, and what it took out of the streams.

-- Offsets of a feed's streams below this one are gone: a deletion that followed them is not kept any more.
ALTER TABLE bourn.feeds ADD COLUMN horizon bigint NOT NULL DEFAULT 0;
CREATE INDEX feeds_horizon ON bourn.feeds (entity_type, horizon);

-- Activities up to here were looked at; `generation` grows whenever something was taken out.
ALTER TABLE bourn.log ADD COLUMN pruned bigint NOT NULL DEFAULT 0, ADD COLUMN generation bigint NOT NULL DEFAULT 0;

-- Activities that left the streams, without their payload: a partition for each month in which they were made, so
-- that a month goes at once. The newest partition is open at its end.
CREATE TABLE bourn.audit (
  seq             bigint NOT NULL,
  action          text   NOT NULL,
  entity_type     text   NOT NULL,
  entity_id       text   COLLATE "C" NOT NULL,
  organization_id text,
  transaction_id  text   COLLATE "C",
  client_id       text   COLLATE "C",
  changed_keys    text,
  commit_id       bigint NOT NULL,
  created_at      timestamptz NOT NULL,
  PRIMARY KEY (seq)
) PARTITION BY RANGE (seq);
CREATE INDEX audit_entity      ON bourn.audit (entity_id, seq);
CREATE INDEX audit_transaction ON bourn.audit (transaction_id) WHERE transaction_id IS NOT NULL;
CREATE INDEX audit_client      ON bourn.audit (client_id, seq) WHERE client_id IS NOT NULL;

-- Where each month's partition begins.
CREATE TABLE bourn.months (
  month     date   PRIMARY KEY,
  first_seq bigint NOT NULL
);

DROP VIEW bourn.history;
CREATE VIEW bourn.history AS
  SELECT seq, l.epoch || '_' || lpad(seq::text, 16, '0') AS id, entity_type || '.' || action || 'd' AS type, action, entity_type,
         entity_id, organization_id, transaction_id, client_id, changed_keys, value, previous_values, commit_id, created_at
  FROM (SELECT seq, action, entity_type, entity_id, organization_id, transaction_id, client_id, changed_keys, value, previous_values,
               commit_id, created_at FROM bourn.activities
        UNION ALL SELECT seq, action, entity_type, entity_id, organization_id, transaction_id, client_id, changed_keys, NULL, NULL,
               commit_id, created_at FROM bourn.audit) a, bourn.log l;
