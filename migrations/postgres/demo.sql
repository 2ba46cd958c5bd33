-- The demo's tables, made when the database is new.

CREATE TABLE pages (
  id              text PRIMARY KEY,
  organization_id text,
  name            text NOT NULL DEFAULT '',
  content         text,
  transactions    jsonb,
  last_client_id  text,
  created_at      timestamptz NOT NULL DEFAULT now(),
  modified_at     timestamptz,
  deleted_at      timestamptz
);
CREATE INDEX pages_organization ON pages (organization_id, id);

CREATE TABLE attachments (
  id              text PRIMARY KEY,
  organization_id text,
  page_id         text,
  filename        text NOT NULL DEFAULT '',
  content_type    text,
  size            bigint,
  url             text,
  transactions    jsonb,
  last_client_id  text,
  created_at      timestamptz NOT NULL DEFAULT now(),
  modified_at     timestamptz,
  deleted_at      timestamptz
);
CREATE INDEX attachments_organization ON attachments (organization_id, id);
