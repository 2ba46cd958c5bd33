-- Stored streams, and the subscriptions to them.

CREATE TABLE bourn.streams (
  -- Never used twice, because offsets name it.
  id           bigint   PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
  -- Empty once the stream is deleted and only waits to be removed.
  path         text     COLLATE "C" UNIQUE,
  -- 0: there; 1: deleted, and kept for its forks; 2: to be removed.
  state        smallint NOT NULL DEFAULT 0,
  content_type text     NOT NULL,
  -- How many bytes the stream has, those of its source up to where it left it included.
  tail         bigint   NOT NULL,
  closed       boolean  NOT NULL DEFAULT false,
  closed_by    text,
  closed_epoch bigint,
  closed_seq   bigint,
  -- The last Stream-Seq.
  writer_seq   text,
  -- Seconds without use after which it expires, or the time at which it does; and the deadline that follows, the times
  -- in Unix milliseconds.
  ttl          bigint,
  expires_at   bigint,
  deadline     bigint,
  -- What it was forked from, where it left it, and how much further it was asked to go.
  source_id    bigint,
  source_path  text,
  base         bigint   NOT NULL DEFAULT 0,
  -- Where it was asked to leave its source, and how much further; as it was asked, for a repeated request.
  fork_offset  text,
  fork_sub     bigint   NOT NULL DEFAULT 0,
  producers    integer  NOT NULL DEFAULT 0
  -- Room beside each row for its next version: every append makes one.
) WITH (fillfactor = 50);
CREATE INDEX streams_deadline ON bourn.streams (deadline)  WHERE deadline  IS NOT NULL;
CREATE INDEX streams_source   ON bourn.streams (source_id) WHERE source_id IS NOT NULL;
CREATE INDEX streams_dead     ON bourn.streams (id)        WHERE state = 2;
-- Each database begins somewhere else, so that a database that was made anew does not take another's offsets for its own.
SELECT setval(pg_get_serial_sequence('bourn.streams', 'id'), 1 + floor(random() * 4e15)::bigint);

-- What was appended, one row an append, as the bytes that go out; messages of one JSON append are joined by commas.
CREATE TABLE bourn.stream_data (
  stream_id bigint  NOT NULL,
  start     bigint  NOT NULL,
  messages  integer NOT NULL,
  data      bytea   NOT NULL,
  PRIMARY KEY (stream_id, start)
);
-- Compressing would take more of the writers' time than everything else that is done to an append.
ALTER TABLE bourn.stream_data ALTER COLUMN data SET STORAGE EXTERNAL;

CREATE TABLE bourn.stream_producers (
  stream_id   bigint NOT NULL,
  producer_id text   COLLATE "C" NOT NULL,
  epoch       bigint NOT NULL,
  seq         bigint NOT NULL,
  PRIMARY KEY (stream_id, producer_id)
) WITH (fillfactor = 70);

-- Who writes, several for each server: how many commits each has made, so that a server notices when it has not been told
-- of one; and how many streams each has made more than removed. The row 0 stands for those that are no more.
CREATE TABLE bourn.stream_writers (
  id      bigint      PRIMARY KEY,
  commits bigint      NOT NULL,
  streams bigint      NOT NULL DEFAULT 0,
  seen_at timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 10);
INSERT INTO bourn.stream_writers (id, commits) VALUES (0, 0);

-- A subscription's whole state as JSON. A change is made only if the version is still the one that was read.
CREATE TABLE bourn.subscriptions (
  id      text   COLLATE "C" PRIMARY KEY,
  version bigint NOT NULL,
  -- When a lease ends or a delivery is to be tried again, in Unix milliseconds.
  due_at  bigint,
  state   text   NOT NULL
) WITH (fillfactor = 50);

-- What signs webhooks and tokens.
CREATE TABLE bourn.secrets (
  name  text  COLLATE "C" PRIMARY KEY,
  value bytea NOT NULL
);
