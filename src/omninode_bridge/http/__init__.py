"""HTTP: routes and how bodies, errors and headers look on the wire. No logic: each call asks the app.

    application   `create_app`: the routes, the error handlers, the document at /openapi.json
    endpoints     what each call reads, asks and answers
    bodies        reading a body within its limits: whole, hashed while it arrives, or a form's file
    problems      one table from errors to RFC 9457 answers
    envelope      what every answer carries, and the last resort
    openapi       the description of the calls, made from the same structs that read and write them
    protocol      HTTP/1.1 on a connection, with limits
    server        `serve`: address, signals, readiness, shutdown

The only importer of fastapi, starlette and uvicorn.
"""
