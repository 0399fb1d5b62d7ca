-- Pages of the reducer's state: its keys in the order of code points, whatever the database's own order is.

ALTER TABLE bridge_state ALTER COLUMN group_key TYPE text COLLATE "C";

-- The totals of namespaces lie among the rows of every other grouping.
CREATE INDEX bridge_state_overview ON bridge_state (generation, group_key) WHERE aggregation_type = 'namespace';
