"""The command line. No logic: each command asks the app, prints what it says, and turns it into an exit code.

main        the commands and their options; imports only typer, so that `--help` is instant
options     what several commands have; `token_commands` are those of `token`
running     from settings to an event loop; every way to end, and its exit code
output      NDJSON, plain text and tables on standard output; the progress bar on standard error
stamping    stamp, verify
reading     show, history, state, workflow
exporting   export
tokens      token create, list, revoke
operating   up, migrate, doctor, audit, rebuild, contract validate, bench
"""
