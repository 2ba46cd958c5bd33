-- Which configuration the entity type's triggers were made for last: servers of different configuration share a file.

ALTER TABLE bourn_entities ADD COLUMN configuration TEXT;
