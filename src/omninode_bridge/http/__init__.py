"""HTTP: routes and how bodies, errors and headers look on the wire. No logic: each call asks the app.

    application   `create_app`: the routes, the error handlers, the document at /openapi.json
    gate          who comes in: tokens, and what a call asks of them (`asking` has the principal)
    endpoints     stamp, look up, hash: what each call reads, asks and answers
    batches       many stamps in one call, each item with an answer of its own
    validating    is this what was stamped, and are the stamps in it true?
    workflows     accepted now, run later; where any workflow is, and why
    namespaces    which there are, their totals, stamps and aggregates, page by page
    events        the event log as server-sent events
    monitoring    health and metrics
    measuring     each request counted, and logged on demand
    intake        requests for stamps, the same for all calls that take them
    messages      what callers send and get, as structs
    cursors       where the next page of a list begins
    wire          what a request's headers say, and how an answer is written
    bodies        reading a body within its limits: whole, hashed while it arrives, or a form's file
    problems      one table from errors to RFC 9457 answers
    envelope      what every answer carries, and the last resort
    openapi       the description of the calls, made from the same structs that read and write them
    protocol      HTTP/1.1 on a connection, with limits
    server        `serve`: address, signals, readiness, shutdown

The only importer of starlette and uvicorn.
"""
