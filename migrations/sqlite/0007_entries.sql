-- What the triggers of the streamed tables write through: the part of an activity that is the same for all of them is here,
-- and not in the triggers of every table, which each process reads when it opens the file.

CREATE VIEW bourn_entries AS
SELECT action, entity_type, entity_id, organization_id, transaction_id, client_id, changed_keys, value, previous_values
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
  SELECT NEW.action, NEW.entity_type, NEW.entity_id, id, NEW.organization_id, NEW.transaction_id, NEW.client_id,
    NEW.changed_keys, NEW.value, NEW.previous_values, strftime('%Y-%m-%dT%H:%M:%fZ', 'now')
  FROM bourn_feeds
  WHERE entity_type = NEW.entity_type AND scope = coalesce(NEW.organization_id, '');
END;
