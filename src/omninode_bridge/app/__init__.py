"""The hops in order, and the assembly.

settings    every limit and address, read once
bootstrap   plain constructor calls; what runs is made of adapters here
ingest      group commit: requests that arrive while a commit is under way form the next one
project     the reducer's loop: log → fold → state
tree        files and folders as a bounded pipeline of requests
query       what callers ask, up to date with every stamp acknowledged before
audit       the laws, checked on live data by independent code
following   a reader's walk through the event log, from an id on
telemetry   metrics
health      how a process does, and `parts`: what is looked at
monitor     telemetry, health and the look-out for events, together
logs        log lines, and what is in none of them
access      tokens become principals; `known_tokens` and `quotas` are what it knows and what it counts
administration  what administrators do, each act with its row
doctor      each dependency checked, with the remedy
schema      a database brought to this program's schema
bridge      `Bridge`: all of it behind one object
"""
