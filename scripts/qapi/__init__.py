# SPDX-License-Identifier: MIT
"""The QAPI generator: from schema files to C types, codecs, commands, events and documents.

One module a step, in the order in which a schema passes through them:

    lexer      characters to tokens, with their places
    doc        one documentation comment
    parser     tokens to definitions; includes and pragmas
    expr       the shape of one definition: its keys and their JSON types
    model      the checked schema: types, commands and events that refer to one another
    names      spelling of C identifiers
    output     a C or text file under construction
    c_*, rst_* one output each
"""
