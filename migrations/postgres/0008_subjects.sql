-- The caller whose token a change was made with, where there is access control.

ALTER TABLE bourn.activities ADD COLUMN subject text;
ALTER TABLE bourn.audit      ADD COLUMN subject text;
ALTER TABLE bourn.ledger     ADD COLUMN subject text;

CREATE OR REPLACE VIEW bourn.history AS
  SELECT seq, l.epoch || '_' || lpad(seq::text, 16, '0') AS id, entity_type || '.' || action || 'd' AS type, action, entity_type,
         entity_id, organization_id, transaction_id, client_id, changed_keys, value, previous_values, commit_id, created_at, subject
  FROM (SELECT seq, action, entity_type, entity_id, organization_id, transaction_id, client_id, changed_keys, value, previous_values,
               commit_id, created_at, subject FROM bourn.activities
        UNION ALL SELECT seq, action, entity_type, entity_id, organization_id, transaction_id, client_id, changed_keys, NULL, NULL,
               commit_id, created_at, subject FROM bourn.audit) a, bourn.log l;
