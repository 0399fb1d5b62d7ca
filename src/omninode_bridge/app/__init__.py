"""The hops in order, and the assembly.

settings    every limit and address, read once
bootstrap   plain constructor calls; what runs is made of adapters here
ingest      group commit: requests that arrive while a commit is under way form the next one
project     the reducer's loop: log → fold → state
tree        files and folders as a bounded pipeline of requests
query       what callers ask, up to date with every stamp acknowledged before
audit       the laws, checked on live data by independent code
doctor      each dependency checked, with the remedy
schema      a database brought to this program's schema
bridge      `Bridge`: all of it behind one object
"""
