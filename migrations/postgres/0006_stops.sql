-- Entity types whose capture has stopped because the log refuses one of their rows, until an operator acts.
ALTER TABLE bourn.entities
  ADD COLUMN stopped_at     timestamptz,
  ADD COLUMN stopped_key    text,
  ADD COLUMN stopped_reason text;

-- Rows that an operator has told capture to pass over for as long as the log refuses them. Keys may be longer than an index
-- takes: they are few, and compared one by one.
CREATE TABLE bourn.skipped (
  entity_type text NOT NULL,
  entity_id   text COLLATE "C" NOT NULL,
  reason      text NOT NULL,
  skipped_at  timestamptz NOT NULL DEFAULT now()
);
