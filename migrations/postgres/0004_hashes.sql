-- Keys and scopes may be as long as a row holds: what looks for them is indexed by a hash, because an index on the text
-- itself refuses long ones. Queries compare the hash and the text.

DROP INDEX bourn.activities_entity;
CREATE INDEX activities_entity ON bourn.activities (hashtextextended(entity_id, 0), entity_type, seq);

DROP INDEX bourn.audit_entity;
CREATE INDEX audit_entity ON bourn.audit (hashtextextended(entity_id, 0), seq);

-- A scope's feeds are found by a hash index; the constraint compares the text itself where hashes are the same.
ALTER TABLE bourn.feeds DROP CONSTRAINT feeds_scope_entity_type_key;
CREATE INDEX feeds_scope ON bourn.feeds USING hash (scope);
ALTER TABLE bourn.feeds ADD CONSTRAINT feeds_name EXCLUDE USING hash ((entity_type || E'\n' || scope) WITH =);

ANALYZE bourn.activities;
