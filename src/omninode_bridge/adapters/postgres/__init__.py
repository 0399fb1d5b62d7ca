"""The bridge's storage on PostgreSQL 15 or newer. The only importer of asyncpg.

connection   sessions and pools with their timeouts; driver errors become ours here
migrations   numbered SQL files, applied once, in order, under a lock
rows         domain values ⇄ columns
ledger       one shard's owner: the transaction that makes a stamp
state        the reducer's projection, and the event log as its source
reads        queries by key
tokens       API tokens, what they used, and the log of administrative acts
"""
