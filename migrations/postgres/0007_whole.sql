-- Whether the log has had every row of the table since capture began or skipped something. Until then a list may give out rows
-- that the log does not have.

ALTER TABLE bourn.entities ADD COLUMN whole boolean NOT NULL DEFAULT false;
UPDATE bourn.entities SET whole = reconciled;
