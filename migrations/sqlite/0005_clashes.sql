-- Rows that a statement may be about to replace, because it writes a value that must be unique: noted before the row is
-- written, looked at after it, and then forgotten.
CREATE TABLE bourn_clashes (
  entity_type TEXT NOT NULL,
  entity_id   TEXT NOT NULL
);
