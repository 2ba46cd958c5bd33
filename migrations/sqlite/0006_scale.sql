-- Powers of two, by which triggers make whole numbers of floating point: printing it is not exact, and differs between
-- versions of SQLite. A number x, which is not less than `least` but less than the next one, times `p` times `q` is a whole
-- number below 2^62, and `n` is the binary logarithm of `p` times `q`.

CREATE TABLE bourn_scale (
  least REAL    PRIMARY KEY,
  n     INTEGER NOT NULL,
  p     REAL    NOT NULL,
  q     REAL    NOT NULL
) WITHOUT ROWID;
-- Products of powers of two are exact, where literals may not be.
WITH RECURSIVE
  up (k, v)    AS (VALUES (0, 1.0)          UNION ALL SELECT k + 10, v * 1024.0 FROM up   WHERE k < 1020),
  down (k, v)  AS (VALUES (-10, 1 / 1024.0) UNION ALL SELECT k - 10, v / 1024.0 FROM down WHERE k > -1080),
  power (k, v) AS (SELECT k, v FROM up UNION ALL SELECT k, v FROM down)
INSERT INTO bourn_scale
SELECT a.v, 52 - a.k, 4.0 * b.v, c.v
FROM power a JOIN power b ON b.k = min(50 - a.k, 1000) JOIN power c ON c.k = 50 - a.k - b.k
UNION ALL VALUES (9e999, 9999, 1.0, 1.0);
