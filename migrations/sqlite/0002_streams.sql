-- Stored streams, and the subscriptions to them.

CREATE TABLE bourn_streams (
  -- Never used twice, because offsets name it. Each database begins somewhere else, so that a database that was made
  -- anew does not take another's offsets for its own.
  id           INTEGER PRIMARY KEY AUTOINCREMENT,
  -- Empty once the stream is deleted and only waits to be removed.
  path         TEXT    UNIQUE,
  -- 0: there; 1: deleted, and kept for its forks; 2: to be removed.
  state        INTEGER NOT NULL DEFAULT 0,
  content_type TEXT    NOT NULL,
  -- How many bytes the stream has, those of its source up to where it left it included.
  tail         INTEGER NOT NULL,
  closed       INTEGER NOT NULL DEFAULT 0,
  closed_by    TEXT,
  closed_epoch INTEGER,
  closed_seq   INTEGER,
  -- The last Stream-Seq.
  writer_seq   TEXT,
  -- Seconds without use after which it expires, or the time at which it does; and the deadline that follows.
  ttl          INTEGER,
  expires_at   INTEGER,
  deadline     INTEGER,
  -- What it was forked from, where it left it, and how much further it was asked to go.
  source_id    INTEGER,
  source_path  TEXT,
  base         INTEGER NOT NULL DEFAULT 0,
  -- Where it was asked to leave its source, and how much further; as it was asked, for a repeated request.
  fork_offset  TEXT,
  fork_sub     INTEGER NOT NULL DEFAULT 0,
  producers    INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX bourn_streams_deadline ON bourn_streams (deadline)  WHERE deadline  IS NOT NULL;
CREATE INDEX bourn_streams_source   ON bourn_streams (source_id) WHERE source_id IS NOT NULL;
CREATE INDEX bourn_streams_dead     ON bourn_streams (id)        WHERE state = 2;
INSERT INTO sqlite_sequence (name, seq) VALUES ('bourn_streams', abs(random() % 4000000000000000));

-- What was appended, one row an append, as the bytes that go out; messages of one JSON append are joined by commas.
-- What would not fit into a page of this table is elsewhere: a search here would read all of what it passes.
CREATE TABLE bourn_stream_data (
  stream_id INTEGER NOT NULL,
  start     INTEGER NOT NULL,
  messages  INTEGER NOT NULL,
  bytes     INTEGER NOT NULL,
  data      BLOB,
  large     INTEGER,
  PRIMARY KEY (stream_id, start),
  CHECK ((data IS NULL) <> (large IS NULL))
) WITHOUT ROWID;
CREATE TABLE bourn_stream_large (
  id   INTEGER PRIMARY KEY,
  data BLOB NOT NULL
);
CREATE TRIGGER bourn_stream_large_goes AFTER DELETE ON bourn_stream_data WHEN old.large IS NOT NULL
BEGIN
  DELETE FROM bourn_stream_large WHERE id = old.large;
END;

CREATE TABLE bourn_stream_producers (
  stream_id   INTEGER NOT NULL,
  producer_id TEXT    NOT NULL,
  epoch       INTEGER NOT NULL,
  seq         INTEGER NOT NULL,
  PRIMARY KEY (stream_id, producer_id)
) WITHOUT ROWID;

-- Counts every commit that touched a stream, so that a server knows another's from its own; and the streams.
CREATE TABLE bourn_stream_totals (
  id      INTEGER PRIMARY KEY CHECK (id = 1),
  version INTEGER NOT NULL,
  streams INTEGER NOT NULL
);
INSERT INTO bourn_stream_totals VALUES (1, 0, 0);

-- A subscription's whole state as JSON. A change is made only if the version is still the one that was read.
CREATE TABLE bourn_subscriptions (
  id      TEXT    PRIMARY KEY,
  version INTEGER NOT NULL,
  -- When a lease ends or a delivery is to be tried again, in Unix milliseconds.
  due_at  INTEGER,
  state   TEXT    NOT NULL
) WITHOUT ROWID;

-- What signs webhooks and tokens.
CREATE TABLE bourn_secrets (
  name  TEXT PRIMARY KEY,
  value BLOB NOT NULL
) WITHOUT ROWID;
