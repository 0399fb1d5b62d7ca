"""The benchmarks that docs/performance.md reports: each figure beside a counterpart's on the same data.

    python -m benchmarks [NAME…] [--smoke] [--json] [--write] [--stamps N] [--folder DIR]

The rules they keep:

1. A figure is a ratio: both sides take turns, pair by pair, and what is reported is the median of the pairs' ratios.
2. Both sides must come to the same result, or the run fails; its hash is printed, so nobody gets faster by doing less.
3. Data sets are made from a seed, in one folder that is removed afterwards.
4. Durability is on, as it is in production; nothing is configured for the benchmark's sake.

    measure      a row of the report, what is owed, taking turns
    place        sizes, the folder, the data sets
    machine      what it was measured on
    report       the table, NDJSON, docs/performance.md
    hashing      against b3sum; `digests` is our side alone
    stamping     against the bare INSERT, which is in `floor`
    api          against DBOS Transact: `dbos_peer` is that side, `loadgen` sends the requests, `wanted` has them
    folding      against polars
    transitions  against omnibase_core
    growth       millions of stamps against ten thousand: `corpus` is what is stamped, `lookups` are the reads
    processes    memory and start of the whole program; `service` is a running `up`, `resident` a process that stamps
"""
