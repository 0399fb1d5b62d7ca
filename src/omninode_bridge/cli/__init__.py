"""The command line. No logic: each command asks the app, prints what it says, and turns it into an exit code.

main        the commands and their options; imports only typer, so that `--help` is instant
running     from settings to an event loop; every way to end, and its exit code
output      NDJSON, plain text and tables on standard output; the progress bar on standard error
stamping    stamp, verify
reading     show, history, state, workflow
exporting   export
operating   up, migrate, doctor, audit, rebuild, contract validate, bench
"""
