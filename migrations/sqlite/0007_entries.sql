-- What the triggers of the streamed tables write through: the part of an activity that is the same for all of them is here,
-- and not in the triggers of every table, which each process reads when it opens the file.
--
-- `how` says where the ids of the transaction and of the client come from: nowhere, because the row was so before (n); the
-- context (null); or a row that was changed (u), that has left its place (t), that was inserted (i), that was inserted
-- hidden (h) or that was deleted (d), with a c behind it where the row has a column for the client.

CREATE VIEW bourn_entries AS
SELECT action, entity_type, entity_id, organization_id, NULL AS how, NULL AS old_ids, NULL AS new_ids, NULL AS old_client,
  NULL AS new_client, changed_keys, value, previous_values
FROM activities;

CREATE TRIGGER bourn_entries_insert INSTEAD OF INSERT ON bourn_entries
BEGIN
  -- The feed has its number. Not INSERT OR IGNORE: an OR REPLACE of the writer's statement would override that, and give
  -- the feed another number.
  INSERT INTO bourn_feeds (entity_type, scope)
  SELECT NEW.entity_type, coalesce(NEW.organization_id, '')
  WHERE NOT EXISTS (
    SELECT 1 FROM bourn_feeds WHERE entity_type = NEW.entity_type AND scope = coalesce(NEW.organization_id, '')
  );
  INSERT INTO activities (
    action, entity_type, entity_id, feed_id, organization_id, transaction_id, client_id, changed_keys, value, previous_values,
    created_at
  )
  SELECT NEW.action, NEW.entity_type, NEW.entity_id, f.id, NEW.organization_id, t.id,
    CASE
      WHEN NEW.how = 'n' THEN NULL
      WHEN NEW.how IS NULL OR NEW.how NOT LIKE '%c' THEN x.client_id
      -- The client, where the statement gave a transaction id or another client than the row had.
      WHEN NEW.how IN ('uc', 'tc') THEN
        CASE WHEN NEW.new_client IS NOT NEW.old_client OR t.id IS NOT NULL THEN NEW.new_client END
      WHEN NEW.how = 'dc' THEN
        CASE WHEN x.transaction_id IS NOT NULL THEN x.client_id WHEN t.id IS NOT NULL THEN NEW.old_client END
      WHEN t.id IS NOT NULL OR NOT EXISTS (
        SELECT 1 FROM activities WHERE entity_id = NEW.entity_id AND entity_type = NEW.entity_type
      ) THEN NEW.new_client
    END,
    NEW.changed_keys, NEW.value, NEW.previous_values, strftime('%Y-%m-%dT%H:%M:%fZ', 'now')
  FROM bourn_feeds f, bourn_context x, (
    -- The context has the id that the server gives its own writes where a row cannot carry it.
    SELECT CASE WHEN NEW.how IS NOT 'n' THEN coalesce((SELECT transaction_id FROM bourn_context), (
      SELECT given
      FROM (
        SELECT place, s, o, n, CASE WHEN NEW.how IN ('d', 'dc') THEN o ELSE n END AS given
        FROM (
          -- Ids have no white space. They are found in the text, because the functions for JSON are forbidden to triggers
          -- where a writer distrusts the schema, up to SQLite 3.40; an id that JSON would escape is not found.
          SELECT place, s,
            (SELECT substr(i, 1, instr(i, '"') - 1)
             FROM (SELECT substr(j, instr(j, s) + length(s)) AS i FROM (SELECT replace(NEW.old_ids, ' ', '') AS j) WHERE instr(j, s))
             WHERE instr(i, '"') > 1 AND NOT instr(substr(i, 1, instr(i, '"')), '\')) AS o,
            (SELECT substr(i, 1, instr(i, '"') - 1)
             FROM (SELECT substr(j, instr(j, s) + length(s)) AS i FROM (SELECT replace(NEW.new_ids, ' ', '') AS j) WHERE instr(j, s))
             WHERE instr(i, '"') > 1 AND NOT instr(substr(i, 1, instr(i, '"')), '\')) AS n
          FROM (
            SELECT 1 AS place, '"delete":"' AS s, 'thd' AS hows
            UNION ALL SELECT 2, '"update":"', 'utih'
            UNION ALL SELECT 3, '"insert":"', 'ih'
          )
          WHERE instr(hows, substr(NEW.how, 1, 1))
        )
      )
      WHERE given IS NOT NULL AND CASE substr(NEW.how, 1, 1)
        -- The announcement of this delete, and not of an earlier one that was taken back since.
        WHEN 'd' THEN NOT EXISTS (
          SELECT 1 FROM activities WHERE transaction_id = given AND entity_id = NEW.entity_id AND entity_type = NEW.entity_type
        )
        -- The first id that the last version of the key in the log had not: a row that was put back as it had been carries
        -- no id.
        WHEN 'i' THEN NOT coalesce((
          SELECT instr(replace(value, ' ', ''), s || given || '"') FROM activities
          WHERE entity_id = NEW.entity_id AND entity_type = NEW.entity_type AND value IS NOT NULL ORDER BY seq DESC LIMIT 1
        ), 0)
        WHEN 'h' THEN NOT coalesce((
          SELECT instr(replace(value, ' ', ''), s || given || '"') FROM activities
          WHERE entity_id = NEW.entity_id AND entity_type = NEW.entity_type AND value IS NOT NULL ORDER BY seq DESC LIMIT 1
        ), 0)
        -- A writer that left the ids as they were knows nothing of them, and passes none on.
        ELSE n IS NOT o
      END
      ORDER BY place LIMIT 1
    )) END AS id
  ) t
  WHERE f.entity_type = NEW.entity_type AND f.scope = coalesce(NEW.organization_id, '');
END;
