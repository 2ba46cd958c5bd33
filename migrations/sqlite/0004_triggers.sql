-- What tells the entity type's triggers, as they were made last, from others: servers of different configuration share a file.

ALTER TABLE bourn_entities ADD COLUMN triggers TEXT;
