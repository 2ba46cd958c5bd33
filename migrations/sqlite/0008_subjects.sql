-- The caller whose token a change was made with, where there is access control.

ALTER TABLE activities   ADD COLUMN subject TEXT;
ALTER TABLE bourn_audit  ADD COLUMN subject TEXT;
ALTER TABLE bourn_ledger ADD COLUMN subject TEXT;
