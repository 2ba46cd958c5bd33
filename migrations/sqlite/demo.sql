-- The demo's tables, made when the database is new.

CREATE TABLE pages (
  id              TEXT PRIMARY KEY NOT NULL,
  organization_id TEXT,
  name            TEXT NOT NULL DEFAULT '',
  content         TEXT,
  transactions    JSON,
  last_client_id  TEXT,
  created_at      DATETIME NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
  modified_at     DATETIME,
  deleted_at      DATETIME
);
CREATE INDEX pages_organization ON pages (organization_id, id);

CREATE TABLE attachments (
  id              TEXT PRIMARY KEY NOT NULL,
  organization_id TEXT,
  page_id         TEXT,
  filename        TEXT NOT NULL DEFAULT '',
  content_type    TEXT,
  size            INTEGER,
  url             TEXT,
  transactions    JSON,
  last_client_id  TEXT,
  created_at      DATETIME NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
  modified_at     DATETIME,
  deleted_at      DATETIME
);
CREATE INDEX attachments_organization ON attachments (organization_id, id);
